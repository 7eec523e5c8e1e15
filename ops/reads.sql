-- Questions that people ask of the tables. Filters that are not given are NULL.

-- name: workflows
SELECT id, workflow_type, status, current_step, jsonb_array_length(completed) AS steps_completed, steps,
  (SELECT count(*) FROM workflow_errors e WHERE e.workflow_id = w.id AND e.status <> 'joined') AS errors,
  restores, started_at, updated_at, reason
FROM workflows w
WHERE (%(status)s::text IS NULL OR status = %(status)s)
  AND (%(workflow_type)s::text IS NULL OR workflow_type = %(workflow_type)s)
ORDER BY updated_at DESC, id
LIMIT %(limit)s

-- name: workflow
SELECT id, workflow_type, external_id, version, status, reason, current_step,
  jsonb_array_length(completed) AS steps_completed, steps, restores, started_at, ended_at, updated_at, log_partition, first_offset
FROM workflows WHERE id = %(id)s

-- name: workflow_errors
SELECT id, step_id, error_type, error_code, status, recovery_strategy, recovery_attempts, created_at, error_message
FROM workflow_errors WHERE workflow_id = %(id)s ORDER BY created_at, id

-- name: workflow_checkpoints
SELECT id, sequence, step_id, checkpoint_type, size_bytes, verified, rejection, created_at
FROM workflow_checkpoints WHERE workflow_id = %(id)s ORDER BY sequence DESC, created_at DESC LIMIT %(limit)s

-- name: errors
SELECT id, workflow_id, step_id, error_type, error_code, status, recovery_strategy, recovery_attempts, created_at,
  error_message
FROM workflow_errors
WHERE (%(status)s::text IS NULL OR status = %(status)s)
  AND (%(error_type)s::text IS NULL OR error_type = %(error_type)s)
  AND (%(step_id)s::text IS NULL OR step_id = %(step_id)s)
  AND (%(workflow_id)s::uuid IS NULL OR workflow_id = %(workflow_id)s::uuid)
  AND (%(all)s OR status <> 'joined')
ORDER BY created_at DESC, id
LIMIT %(limit)s

-- name: error
SELECT id, workflow_id, workflow_type, step_id, error_type, error_code, error_severity, status, detected_by,
  fingerprint, root_error_id, checkpoint_id, recovery_strategy, recovery_successful, recovery_attempts,
  created_at, updated_at, error_message, stack_trace, context, reason, sealed IS NOT NULL AS sealed
FROM workflow_errors WHERE id = %(id)s

-- name: leases
SELECT resource_id, status, workflow_id, workflow_type, step_id, lease_id, amount, priority,
  EXTRACT(EPOCH FROM COALESCE(released_at, now()) - CASE status WHEN 'waiting' THEN requested_at
    ELSE COALESCE(granted_at, requested_at) END)::bigint AS seconds,
  requested_at, granted_at, released_at, reason
FROM resource_leases
WHERE (%(resource_id)s::text IS NULL OR resource_id = %(resource_id)s)
  AND (%(workflow_id)s::uuid IS NULL OR workflow_id = %(workflow_id)s::uuid)
  AND (%(all)s OR status <> 'released')
  AND (NOT %(waiting)s OR status = 'waiting')
ORDER BY resource_id, status = 'released', status = 'waiting', COALESCE(released_at, granted_at, requested_at), id
LIMIT %(limit)s

-- name: attempts
SELECT attempt_number, strategy, status, action_taken, rule, command_type, command_id, execute_after_ms, duration_ms,
  created_at, sent_at, accepted_at, finished_at, error_message, evidence, alternatives, policy_version
FROM workflow_recovery_attempts WHERE error_id = %(id)s ORDER BY attempt_number

-- name: interventions
SELECT id, trigger, reason, status, requested_at, deadline_at, decision, actor, resolution
FROM workflow_interventions WHERE error_id = %(id)s ORDER BY requested_at

-- name: notifications
SELECT created_at, incident_id, channel, kind, outcome, tries, detail
FROM notifications
WHERE (%(incident_id)s::uuid IS NULL OR incident_id = %(incident_id)s::uuid)
  AND (%(channel)s::text IS NULL OR channel = %(channel)s)
  AND (NOT %(given_up)s OR outcome = 'given_up')
ORDER BY created_at DESC, log_partition, log_offset DESC
LIMIT %(limit)s
