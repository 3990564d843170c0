-- Sharding by client address. No socket is used here, nothing is opened.
local function bucket(address, buckets)
    local sum = 0
    for byte in string.gmatch(tostring(address), "%d+") do
        sum = (sum * 31 + tonumber(byte)) % 65521
    end
    return sum % buckets
end

core.register_converters("bucket", function(address, buckets)
    return tostring(bucket(address, tonumber(buckets)))
end)

core.register_action("normalize", { "http-req" }, function(txn)
    local path = txn.sf:path()
    if path and #path > 1 then
        txn.http:req_set_path((path:gsub("/+$", "")))
    end
end)
