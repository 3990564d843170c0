-- Asks the authentication service about each request, over a socket of HAProxy's.
local cache = {}

local function ask(txn)
    local s = core.tcp()
    s:settimeout(2)
    if s:connect("127.0.0.1", 4180) then
        s:send("GET /oauth2/auth HTTP/1.0\r\nCookie: " .. (txn.sf:req_hdr("cookie") or "") .. "\r\n\r\n")
        local status = s:receive("*l")
        s:close()
        return status ~= nil and status:find(" 202 ") ~= nil
    end
    return false
end

core.register_action("auth-request", { "http-req" }, function(txn)
    txn:set_var("txn.user", ask(txn) and "known" or "")
end)

core.register_action("audit", { "http-res" }, function(txn)
    cache[#cache + 1] = txn.sf:src()
end)

core.register_fetches('auth-user', function(txn)
    return txn:get_var("txn.user") or ""
end)

core.register_service("whoami", "http", function(applet)
    applet:set_status(200)
    applet:start_response()
    applet:send("you\n")
end)
