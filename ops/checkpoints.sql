-- Checkpoints and versions of states, as people ask for them. Filters that are not given are NULL.

-- name: checkpoints
SELECT c.id, c.workflow_id, c.epoch, c.sequence, c.step_id, c.checkpoint_type, c.state_version, c.size_bytes, c.protection,
  c.verified AND r.reason IS NULL AS verified, c.evidence, coalesce(c.rejection, r.reason || ': ' || r.detail) AS rejection,
  CASE WHEN c.evidence THEN 'evidence' WHEN c.verified AND r.reason IS NULL THEN 'verified' ELSE 'rejected' END AS verdict,
  c.created_at
FROM workflow_checkpoints c
LEFT JOIN LATERAL (
  SELECT reason, detail FROM workflow_checkpoint_rejections WHERE checkpoint_id = c.id ORDER BY created_at LIMIT 1
) r ON true
WHERE (%(workflow_id)s::uuid IS NULL OR c.workflow_id = %(workflow_id)s::uuid)
  AND (%(step_id)s::text IS NULL OR c.step_id = %(step_id)s)
  AND (%(checkpoint_type)s::text IS NULL OR c.checkpoint_type = %(checkpoint_type)s)
  AND (NOT %(rejected)s OR c.rejection IS NOT NULL OR r.reason IS NOT NULL)
ORDER BY c.created_at DESC, c.log_partition, c.log_offset DESC
LIMIT %(limit)s

-- name: checkpoint
SELECT id, workflow_id, step_id, checkpoint_type, epoch, sequence, state_version, checksum, chain_digest, size_bytes,
  codec, protection, claim_uri, redacted, verified, evidence, rejection, timestamp, created_at, log_partition, log_offset,
  metadata, state_data
FROM workflow_checkpoints WHERE id = %(id)s

-- name: rejections
SELECT reason, detail, detected_by, created_at
FROM workflow_checkpoint_rejections WHERE checkpoint_id = %(id)s ORDER BY created_at, id

-- name: before
SELECT id, sequence, step_id, checkpoint_type, rejection, created_at
FROM workflow_checkpoints
WHERE workflow_id = %(workflow_id)s AND log_offset < %(log_offset)s
ORDER BY log_offset DESC LIMIT 1

-- name: after
SELECT id, sequence, step_id, checkpoint_type, rejection, created_at
FROM workflow_checkpoints
WHERE workflow_id = %(workflow_id)s AND log_offset > %(log_offset)s
ORDER BY log_offset LIMIT 1

-- name: workflow_checkpoint_ids
SELECT id FROM workflow_checkpoints WHERE workflow_id = %(workflow_id)s ORDER BY log_offset

-- name: history
SELECT h.id, h.version, h.source, h.step_id, h.status, h.state_version, h.restored_from, h.restore_count, h.created_at,
  octet_length(h.state_data::text) AS json_bytes
FROM workflow_state_history h
WHERE h.workflow_id = %(workflow_id)s
ORDER BY h.created_at DESC, h.timestamp DESC, h.id
LIMIT %(limit)s

-- name: version
SELECT id, version, source, step_id, state_version, created_at, octet_length(state_data::text) AS size_bytes, state_data
FROM workflow_state_history
WHERE workflow_id = %(workflow_id)s
  AND (%(version)s = 'latest' OR version = %(version)s OR id::text = lower(%(version)s))
ORDER BY created_at DESC, timestamp DESC, id
LIMIT 2

-- name: restorable
SELECT id, workflow_type, external_id, status, log_partition, first_offset FROM workflows WHERE id = %(id)s

-- name: open_errors
SELECT id, step_id, error_type, error_code, status, recovery_attempts, created_at
FROM workflow_errors
WHERE workflow_id = %(id)s AND status IN ('open', 'recovering', 'waiting_for_human')
ORDER BY created_at, id

-- name: places
SELECT c.id::text, c.log_offset, c.size_bytes,
  (SELECT r.reason || ': ' || r.detail || ' (' || r.detected_by || ')' FROM workflow_checkpoint_rejections r
   WHERE r.checkpoint_id = c.id ORDER BY r.created_at LIMIT 1)
FROM workflow_checkpoints c
WHERE c.log_partition = %(partition)s
  AND (%(workflow_id)s::uuid IS NULL OR c.workflow_id = %(workflow_id)s::uuid)
ORDER BY c.log_offset

-- name: parts
SELECT log_partition, min(first_offset) AS first_offset
FROM (
  SELECT log_partition, first_offset FROM workflows
  WHERE %(workflow_id)s::uuid IS NULL OR id = %(workflow_id)s::uuid
  UNION ALL
  SELECT log_partition, log_offset FROM workflow_checkpoints
  WHERE %(workflow_id)s::uuid IS NULL OR workflow_id = %(workflow_id)s::uuid
) AS known
GROUP BY log_partition ORDER BY log_partition
