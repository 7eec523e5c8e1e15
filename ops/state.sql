-- Questions that migrations ask of the tables.

-- name: newest_verified
-- Of every live workflow of a type the checkpoint that a restore would take.
SELECT DISTINCT ON (c.workflow_id)
  c.id, c.workflow_id, c.state_version, c.log_partition, c.log_offset
FROM workflow_checkpoints c
JOIN workflows w ON w.id = c.workflow_id
WHERE w.workflow_type = %(workflow_type)s
  AND w.status NOT IN ('completed', 'failed', 'cancelled')
  AND c.verified AND NOT c.evidence
  AND NOT EXISTS (SELECT FROM workflow_checkpoint_rejections r WHERE r.checkpoint_id = c.id)
ORDER BY c.workflow_id, c.epoch DESC, c.sequence DESC, c.log_offset DESC

-- name: live_workflows
SELECT count(*) AS count FROM workflows
WHERE workflow_type = %(workflow_type)s AND status NOT IN ('completed', 'failed', 'cancelled')
