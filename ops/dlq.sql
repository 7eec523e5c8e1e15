-- name: parked
SELECT w.workflow_id::text AS workflow_id, w.log_partition, w.first_offset, w.reason, w.detail, w.retries,
  count(*) AS events, sum(octet_length(e.record_value))::bigint AS bytes, min(e.created_at) AS since, w.parked_at
FROM parked_workflows w
JOIN parked_events e USING (generation, topic, log_partition, workflow_id)
WHERE w.generation = %(generation)s AND (%(workflow_id)s::uuid IS NULL OR w.workflow_id = %(workflow_id)s::uuid)
GROUP BY w.workflow_id, w.log_partition, w.first_offset, w.reason, w.detail, w.retries, w.parked_at
ORDER BY w.parked_at DESC LIMIT %(limit)s

-- name: waiting
SELECT log_partition, log_offset, record_type, octet_length(record_value) AS bytes, created_at
FROM parked_events WHERE generation = %(generation)s AND workflow_id = %(workflow_id)s::uuid
ORDER BY log_partition, log_offset

-- name: letters
SELECT encode(record_key, 'escape') AS key, log_partition, log_offset, stage, reason,
  octet_length(record_value) AS bytes, created_at
FROM dead_letters
WHERE %(key)s::bytea IS NULL OR record_key = %(key)s::bytea
ORDER BY created_at DESC LIMIT %(limit)s
