-- The demo's load for wrk: a mixture of the shop's routes. Arguments: ETag of the index page, wait in ms between the
-- requests of a connection, seed.
local etag, wait_ms, seed

function init(args)
    etag, wait_ms, seed = args[1], tonumber(args[2]), tonumber(args[3])
    math.randomseed(seed)
end

function delay()
    -- Half to one and a half times the wait, so that connections do not march in step.
    return math.floor(wait_ms * (0.5 + math.random()))
end

local function get(path, headers)
    return wrk.format("GET", path, headers)
end

local routes = {
    { 40, function() return get("/api/items/" .. math.random(200), { Accept = "application/json" }) end },
    { 20, function() return get("/products/" .. math.random(200) .. ".html") end },
    { 8, function() return get("/") end },
    { 6, function() return get("/", { ["If-None-Match"] = etag }) end },
    { 5, function() return get("/news") end },
    { 4, function() return get("/static/app.js", { ["Accept-Encoding"] = "gzip" }) end },
    { 2, function() return get("/static/photo.bin") end },
    { 4, function() return get("/old") end },
    { 3, function() return get("/missing/" .. math.random(50)) end },
    { 2, function() return get("/api/items/" .. math.random(100), { Connection = "close" }) end },
    { 6, function()
        local body = '{"item": ' .. math.random(200) .. ', "count": 1}'
        return wrk.format("POST", "/api/orders", { ["Content-Type"] = "application/json" }, body)
    end },
}

function request()
    local at = math.random(100)
    for _, route in ipairs(routes) do
        at = at - route[1]
        if at <= 0 then
            return route[2]()
        end
    end
end
