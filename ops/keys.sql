-- What an erased key makes unreadable, counted before it is erased.

-- name: exposure
SELECT
  (SELECT count(*) FROM workflow_checkpoints WHERE workflow_id = %(id)s) AS checkpoints,
  (SELECT count(*) FROM workflow_state_history WHERE workflow_id = %(id)s) AS states,
  (SELECT count(*) FROM workflow_errors WHERE workflow_id = %(id)s) AS errors

-- name: place
SELECT workflow_type, external_id, status, log_partition FROM workflows WHERE id = %(id)s
