-- What the demo asks of the tables: always about the workflows of one run.

-- name: progress
SELECT status, count(*) AS workflows FROM workflows WHERE id = ANY(%(ids)s::uuid[]) GROUP BY status

-- name: repairs_in_flight
SELECT count(*) AS attempts FROM workflow_recovery_attempts
WHERE workflow_id = ANY(%(ids)s::uuid[]) AND status IN ('decided', 'sent', 'accepted')
  AND strategy <> 'manual_intervention'

-- name: workflows
SELECT id::text, status, restores, reason FROM workflows WHERE id = ANY(%(ids)s::uuid[])

-- name: errors
SELECT error_type, coalesce(recovery_strategy, '-') AS strategy, status, recovery_attempts AS attempts,
  root_error_id IS NULL OR root_error_id = id AS root
FROM workflow_errors WHERE workflow_id = ANY(%(ids)s::uuid[])

-- name: attempts
SELECT a.strategy, a.status, a.attempt_number, a.command_id IS NOT NULL AS command, a.execute_after_ms,
  (extract(epoch FROM a.sent_at - e.created_at) * 1000)::float8 AS error_to_sent_ms,
  (extract(epoch FROM a.accepted_at - a.sent_at) * 1000)::float8 AS sent_to_accepted_ms,
  (extract(epoch FROM a.finished_at - e.created_at) * 1000)::float8 AS error_to_finished_ms
FROM workflow_recovery_attempts a JOIN workflow_errors e ON e.id = a.error_id
WHERE a.workflow_id = ANY(%(ids)s::uuid[])

-- name: waiting
SELECT i.workflow_id::text, i.step_id, i.reason, e.error_type, e.error_code, e.error_message,
  e.recovery_attempts AS attempts
FROM workflow_interventions i LEFT JOIN workflow_errors e ON e.id = i.error_id
WHERE i.workflow_id = ANY(%(ids)s::uuid[]) AND i.status = 'open'
ORDER BY i.requested_at, i.workflow_id
