-- name: scratch
-- Schemas that replays filled, newest first; what was said of each when it was made is its comment.
SELECT n.nspname AS name, obj_description(n.oid, 'pg_namespace') AS said,
  coalesce((SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c
            WHERE c.relnamespace = n.oid AND c.relkind = 'r'), 0)::bigint AS size_bytes
FROM pg_namespace n WHERE n.nspname LIKE 'kintsugi\_replay\_%%' ORDER BY n.oid DESC

-- name: there
-- Its comment, when the schema is there.
SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = %(name)s

-- name: sessions
SELECT id, session_type, status, start_time, end_time, actor, workflow_id, config, results
FROM workflow_debug_sessions WHERE %(id)s::uuid IS NULL OR id = %(id)s ORDER BY start_time DESC, id LIMIT %(limit)s
