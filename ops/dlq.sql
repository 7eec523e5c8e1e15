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

-- name: parked_places
SELECT topic, log_partition, log_offset, octet_length(record_value)
FROM parked_events
WHERE generation = %(generation)s AND (%(workflow_id)s::uuid IS NULL OR workflow_id = %(workflow_id)s::uuid)
ORDER BY topic, log_partition, log_offset

-- name: parked_records
SELECT e.topic, e.log_partition, e.log_offset, (extract(epoch FROM e.created_at) * 1000000)::bigint AS timestamp_us,
  e.record_key, e.record_value, e.headers, e.workflow_id::text AS workflow_id, w.first_offset, w.reason, w.detail,
  w.retries, w.parked_at
FROM parked_events e
JOIN parked_workflows w USING (generation, topic, log_partition, workflow_id)
WHERE e.generation = %(generation)s AND e.topic = %(topic)s AND e.log_partition = %(partition)s
  AND e.log_offset = ANY(%(offsets)s)
ORDER BY e.log_offset

-- name: letter_places
SELECT topic, log_partition, log_offset, coalesce(octet_length(record_value), 0)
FROM dead_letters WHERE %(key)s::bytea IS NULL OR record_key = %(key)s::bytea
ORDER BY topic, log_partition, log_offset

-- name: letter_records
SELECT topic, log_partition, log_offset, (extract(epoch FROM created_at) * 1000000)::bigint AS timestamp_us,
  record_key, record_value, headers, stage, reason, detail
FROM dead_letters
WHERE topic = %(topic)s AND log_partition = %(partition)s AND log_offset = ANY(%(offsets)s)
ORDER BY log_offset

-- name: totals
SELECT
  (SELECT count(*) FROM parked_events
   WHERE generation = %(generation)s AND (%(workflow_id)s::uuid IS NULL OR workflow_id = %(workflow_id)s::uuid)) AS parked,
  (SELECT count(*) FROM dead_letters WHERE %(key)s::bytea IS NULL OR record_key = %(key)s::bytea) AS "table"
