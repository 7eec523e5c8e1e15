-- What people are asked. Filters that are not given are NULL.

-- name: interventions
SELECT i.id, i.workflow_id, i.step_id, i.trigger, i.status, i.claimed_by, i.requested_at, i.deadline_at, i.decision,
  i.actor, i.reason
FROM workflow_interventions i
WHERE (%(every)s OR i.status = 'open')
  AND (%(claimed_by)s::text IS NULL OR i.claimed_by = %(claimed_by)s)
  AND (%(workflow_id)s::uuid IS NULL OR i.workflow_id = %(workflow_id)s::uuid)
ORDER BY i.requested_at DESC, i.id
LIMIT %(limit)s

-- name: intervention
SELECT i.id, i.workflow_id, w.workflow_type, w.external_id, w.status AS workflow_status, i.error_id, i.step_id, i.trigger,
  i.reason, i.status, i.requested_at, i.deadline_at, i.claimed_by, i.claimed_at, i.options, i.fingerprint, i.dependency,
  i.resolved_at, i.decision, i.actor, i.resolution, i.edited, w.log_partition, w.first_offset
FROM workflow_interventions i JOIN workflows w ON w.id = i.workflow_id
WHERE i.id = %(id)s
