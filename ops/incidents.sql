-- Incidents as people ask for them. Filters that are not given are NULL.

-- name: incidents
SELECT id, state, severity, title, owner, page, error_count, affected_count, interventions, first_seen_at, last_seen_at,
  updated_at, resolved_at, key, kind
FROM incidents
WHERE (%(state)s::text IS NULL OR state = %(state)s)
ORDER BY state = 'resolved', updated_at DESC, id
LIMIT %(limit)s

-- name: incident
SELECT id, state, severity, title, key, kind, dependency, fingerprint, error_type, page, owner, note, reason, actor,
  error_count, affected_count, interventions, first_seen_at, last_seen_at, opened_at, updated_at, resolved_at, revision,
  samples, tried, log_partition
FROM incidents WHERE id = %(id)s

-- name: affected
SELECT w.id AS workflow_id, w.workflow_type, w.status, w.current_step, w.updated_at
FROM incidents i JOIN workflows w ON w.id::text IN (SELECT jsonb_array_elements_text(i.samples))
WHERE i.id = %(id)s
ORDER BY w.id
