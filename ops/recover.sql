-- Open errors, for one repair of many of them.

-- name: selected
SELECT e.id, e.workflow_id, e.workflow_type, w.external_id, e.step_id, e.error_type, e.error_code, e.status,
  e.recovery_attempts AS attempts, e.created_at, w.log_partition, w.first_offset
FROM workflow_errors e JOIN workflows w ON w.id = e.workflow_id
WHERE e.status IN ('open', 'recovering', 'waiting_for_human')
  AND w.status NOT IN ('completed', 'failed', 'cancelled')
  AND {condition}
ORDER BY e.created_at, e.id
LIMIT %(limit)s

-- name: now
SELECT e.id::text AS id, e.status, e.recovery_attempts AS attempts, w.status AS workflow_status
FROM workflow_errors e JOIN workflows w ON w.id = e.workflow_id
WHERE e.id = ANY(%(ids)s::uuid[])
