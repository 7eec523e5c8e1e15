-- name: load
SELECT w.workflow_id::text, count(e.log_offset), coalesce(sum(octet_length(e.record_value)), 0)::bigint
FROM parked_workflows w
LEFT JOIN parked_events e USING (generation, topic, log_partition, workflow_id)
WHERE w.generation = %(generation)s AND w.topic = %(topic)s AND w.log_partition = %(partition)s
GROUP BY w.workflow_id

-- name: park
INSERT INTO parked_workflows (generation, topic, log_partition, workflow_id, first_offset, reason, detail)
VALUES (%(generation)s, %(topic)s, %(partition)s, %(workflow_id)s, %(offset)s, %(reason)s, %(detail)s)

-- name: queue
INSERT INTO parked_events
  (generation, topic, log_partition, log_offset, workflow_id, record_type, record_key, record_value, headers, created_at)
VALUES
  (%(generation)s, %(topic)s, %(partition)s, %(offset)s, %(workflow_id)s, %(record_type)s, %(key)s, %(value)s,
   %(headers)s, timestamptz 'epoch' + %(timestamp_us)s * interval '1 microsecond')

-- name: take
-- Whoever owns the partition is fenced: it reads again where the tables stand, and which workflows are parked.
UPDATE positions SET owner_epoch = owner_epoch + 1, updated_at = now()
WHERE generation = %(generation)s AND topic = %(topic)s AND log_partition = %(partition)s
RETURNING next_offset

-- name: hidden
SELECT first_offset, paths FROM redactions
WHERE generation = %(generation)s AND topic = %(topic)s AND log_partition = %(partition)s
ORDER BY first_offset

-- name: waiting
SELECT log_offset, record_type, record_key, record_value, (extract(epoch FROM created_at) * 1000000)::bigint
FROM parked_events
WHERE generation = %(generation)s AND topic = %(topic)s AND log_partition = %(partition)s
  AND workflow_id = %(workflow_id)s
ORDER BY log_offset

-- name: set_aside
INSERT INTO dead_letters
  (topic, log_partition, log_offset, record_key, record_value, headers, stage, reason, detail, created_at)
SELECT topic, log_partition, log_offset, record_key, record_value, headers, %(stage)s, 'discarded', %(detail)s, created_at
FROM parked_events
WHERE generation = %(generation)s AND topic = %(topic)s AND log_partition = %(partition)s
  AND workflow_id = %(workflow_id)s AND log_offset <= %(last)s
ON CONFLICT DO NOTHING

-- name: leave
DELETE FROM parked_events
WHERE generation = %(generation)s AND topic = %(topic)s AND log_partition = %(partition)s
  AND workflow_id = %(workflow_id)s AND log_offset <= %(last)s

-- name: free
DELETE FROM parked_workflows
WHERE generation = %(generation)s AND topic = %(topic)s AND log_partition = %(partition)s
  AND workflow_id = %(workflow_id)s

-- name: stay
UPDATE parked_workflows SET first_offset = %(offset)s, reason = %(reason)s, detail = %(detail)s, retries = retries + 1
WHERE generation = %(generation)s AND topic = %(topic)s AND log_partition = %(partition)s
  AND workflow_id = %(workflow_id)s
