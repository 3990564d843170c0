local sha = require "resty.sha256"
ngx.say(#sha:new():final())
