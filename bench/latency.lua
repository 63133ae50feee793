-- What wrk prints of a run, as JSON; latencies in ms
done = function(summary, latency, requests)
  local errors, bad = summary.errors, 0
  for _, name in ipairs({'connect', 'read', 'write', 'status', 'timeout'}) do
    bad = bad + errors[name]
  end
  io.write(string.format(
    '{"requests": %d, "seconds": %f, "failed": %d, "p50": %f, "p99": %f, "p99.9": %f}\n',
    summary.requests, summary.duration / 1e6, bad, latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3, latency:percentile(99.9) / 1e3))
end
