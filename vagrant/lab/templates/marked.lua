-- One page again and again; one request in so many carries the header X-Shadow-Test: 1. Arguments: path, that number.
local plain, marked, every
local count = 0

function init(args)
    every = tonumber(args[2])
    plain = wrk.format("GET", args[1])
    marked = wrk.format("GET", args[1], { ["X-Shadow-Test"] = "1" })
end

function request()
    count = count + 1
    if count % every == 0 then
        return marked
    end
    return plain
end
