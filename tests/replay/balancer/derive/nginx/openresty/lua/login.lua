-- Asks the session store.
local redis = require "resty.redis"
local red = redis:new()
red:connect("10.11.0.43", 6379)
