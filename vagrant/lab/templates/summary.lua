-- Appended to every script wrk runs: the result as one line of JSON.
function done(summary, latency, requests)
    local e = summary.errors
    io.write(string.format(
        '\nRESULT {"requests": %d, "seconds": %.3f, "failed": %d, "bad_statuses": %d, ' ..
        '"p50_us": %d, "p90_us": %d, "p99_us": %d, "max_us": %d}\n',
        summary.requests, summary.duration / 1e6, e.connect + e.read + e.write + e.timeout, e.status,
        latency:percentile(50), latency:percentile(90), latency:percentile(99), latency.max))
end
