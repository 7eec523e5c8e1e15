-- What the keeper asks of the tables.

-- name: lock
SELECT pg_try_advisory_lock(%(lock)s)

-- name: unlock
SELECT pg_advisory_unlock_all()

-- name: alive
SELECT 1

-- name: live_count
SELECT count(*) FROM workflows WHERE status IN ('running', 'recovering', 'paused', 'waiting_for_human')

-- name: targets
-- The newest are found by the index on (workflow_id, sequence): a sequence never goes back within a workflow.
SELECT c.id::text, w.id::text, w.workflow_type, w.external_id, c.step_id, c.log_partition, c.log_offset, c.checksum,
  c.size_bytes, c.protection = 'none' AND c.claim_uri IS NULL AND NOT c.redacted
FROM workflows w
CROSS JOIN LATERAL (
  SELECT * FROM workflow_checkpoints c
  WHERE c.workflow_id = w.id AND c.verified AND NOT c.evidence
    AND NOT EXISTS (SELECT FROM workflow_checkpoint_rejections r WHERE r.checkpoint_id = c.id)
  ORDER BY c.sequence DESC
  LIMIT %(per_workflow)s
) c
WHERE w.status IN ('running', 'recovering', 'paused', 'waiting_for_human')
ORDER BY (c.log_partition, c.log_offset) <= (%(partition)s::integer, %(offset)s::bigint), c.log_partition, c.log_offset

-- name: states
SELECT id::text, state_data::text FROM workflow_checkpoints WHERE id = ANY(%(ids)s::uuid[])

-- name: histories
-- Most workflows ended long ago and have no checkpoint any more: they are passed over here, not one by one outside.
WITH page AS (
  SELECT id, status IN ('running', 'recovering', 'paused', 'waiting_for_human') AS live
  FROM workflows w
  WHERE id > %(after)s::uuid AND EXISTS (SELECT FROM workflow_checkpoints c WHERE c.workflow_id = w.id)
  ORDER BY id LIMIT %(workflows)s
)
SELECT p.id::text, p.live, c.id::text, c.log_partition, c.log_offset,
  (extract(epoch FROM c.created_at) * 1000000)::bigint,
  c.verified AND NOT c.evidence
    AND NOT EXISTS (SELECT FROM workflow_checkpoint_rejections r WHERE r.checkpoint_id = c.id),
  c.evidence
FROM page p
CROSS JOIN LATERAL (
  SELECT * FROM workflow_checkpoints c WHERE c.workflow_id = p.id ORDER BY c.sequence DESC LIMIT %(checkpoints_max)s
) c
ORDER BY p.id, c.log_offset DESC

-- name: claims
SELECT uri FROM (
  SELECT claim_uri AS uri FROM workflow_checkpoints WHERE claim_uri IS NOT NULL
  UNION
  SELECT claim_uri FROM workflow_state_history WHERE claim_uri IS NOT NULL
) named
ORDER BY uri COLLATE "C"

-- name: has_checkpoints
SELECT EXISTS (SELECT FROM workflow_checkpoints)

-- name: positions
SELECT log_partition, next_offset FROM positions
WHERE generation = %(generation)s AND topic = %(topic)s AND next_offset >= 0

-- name: refused
SELECT log_partition, log_offset FROM dead_letters WHERE topic = %(topic)s AND stage = %(stage)s
UNION ALL
SELECT log_partition, log_offset FROM parked_events WHERE topic = %(topic)s
LIMIT %(limit)s
