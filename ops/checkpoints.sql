-- Checkpoints and versions of states, as people ask for them. Filters that are not given are NULL.

-- name: checkpoints
SELECT id, workflow_id, sequence, step_id, checkpoint_type, state_version, size_bytes, verified, evidence, rejection,
  created_at
FROM workflow_checkpoints
WHERE (%(workflow_id)s::uuid IS NULL OR workflow_id = %(workflow_id)s::uuid)
  AND (%(step_id)s::text IS NULL OR step_id = %(step_id)s)
  AND (%(checkpoint_type)s::text IS NULL OR checkpoint_type = %(checkpoint_type)s)
  AND (NOT %(rejected)s OR rejection IS NOT NULL)
ORDER BY created_at DESC, sequence DESC, id
LIMIT %(limit)s

-- name: checkpoint
SELECT id, workflow_id, step_id, checkpoint_type, sequence, state_version, checksum, chain_digest, size_bytes,
  compressed, verified, evidence, rejection, timestamp, created_at, log_partition, log_offset, metadata, state_data
FROM workflow_checkpoints WHERE id = %(id)s

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
SELECT id, size_bytes
FROM workflow_checkpoints WHERE workflow_id = %(workflow_id)s ORDER BY log_offset

-- name: history
SELECT h.id, h.version, h.source, h.step_id, h.status, h.state_version, h.restored_from, h.restore_count, h.created_at,
  octet_length(h.state_data::text) AS json_bytes
FROM workflow_state_history h
WHERE h.workflow_id = %(workflow_id)s
ORDER BY h.created_at DESC, h.id DESC
LIMIT %(limit)s

-- name: version
SELECT id, version, source, step_id, state_version, created_at, state_data
FROM workflow_state_history
WHERE workflow_id = %(workflow_id)s
  AND (%(version)s = 'latest' OR version = %(version)s OR id::text = lower(%(version)s))
ORDER BY created_at DESC, id DESC
LIMIT 2
