-- name: all
SELECT name, number, state, tables, tables_version, built_by, differing, actor, reason, created_at, changed_at
FROM generations ORDER BY number

-- name: new
INSERT INTO generations (name, number, state, tables, tables_version, built_by, actor, reason)
SELECT 'kintsugi_g' || n, n, %(state)s, %(tables)s::text[], %(version)s, %(built_by)s, %(actor)s, %(reason)s
FROM (SELECT coalesce(max(number), 1) + 1 AS n FROM generations) x
RETURNING name

-- name: state
UPDATE generations SET state = %(state)s, differing = coalesce(%(differing)s, differing), changed_at = now()
WHERE name = %(name)s

-- name: range
INSERT INTO generation_ranges VALUES (%(name)s, %(partition)s, %(first)s, %(end)s)

-- name: ranges
SELECT log_partition, first_offset, end_offset FROM generation_ranges WHERE generation = %(name)s

-- name: parts
SELECT bucket FROM generation_parts WHERE generation = %(name)s AND log_partition = %(partition)s

-- name: part
INSERT INTO generation_parts (generation, log_partition, bucket, rows)
SELECT %(name)s, %(partition)s, bucket, CASE number WHEN 1 THEN %(rows)s ELSE 0 END
FROM unnest(%(buckets)s::integer[]) WITH ORDINALITY AS b (bucket, number)

-- name: positioned
INSERT INTO positions (generation, topic, log_partition, next_offset, owner_epoch, updated_at)
SELECT %(name)s, %(topic)s, log_partition, end_offset, 1, now() FROM generation_ranges WHERE generation = %(name)s
ON CONFLICT DO NOTHING

-- name: begun
INSERT INTO beginnings (generation, topic, log_partition, tables_version, first_offset)
SELECT %(name)s, %(topic)s, log_partition, %(version)s, 0 FROM generation_ranges WHERE generation = %(name)s
ON CONFLICT DO NOTHING

-- name: hidden
INSERT INTO redactions (generation, topic, log_partition, first_offset, paths)
SELECT %(name)s, topic, log_partition, first_offset, paths FROM redactions
WHERE generation = 'kintsugi' AND topic = %(topic)s
ON CONFLICT DO NOTHING

-- name: kept_positions
INSERT INTO positions (generation, topic, log_partition, next_offset, owner_epoch, updated_at)
SELECT %(retired)s, topic, log_partition, next_offset, owner_epoch, now() FROM positions WHERE generation = 'kintsugi'

-- name: kept_beginnings
UPDATE beginnings SET generation = %(retired)s WHERE generation = 'kintsugi'

-- name: kept_redactions
UPDATE redactions SET generation = %(retired)s WHERE generation = 'kintsugi'

-- name: live_positions
INSERT INTO positions AS p (generation, topic, log_partition, next_offset, owner_epoch, updated_at)
SELECT 'kintsugi', topic, log_partition, next_offset, owner_epoch, now() FROM positions WHERE generation = %(name)s
ON CONFLICT (generation, topic, log_partition) DO UPDATE
SET next_offset = EXCLUDED.next_offset, owner_epoch = p.owner_epoch + 1, updated_at = now()

-- name: live_beginnings
UPDATE beginnings SET generation = 'kintsugi' WHERE generation = %(name)s

-- name: live_redactions
UPDATE redactions SET generation = 'kintsugi' WHERE generation = %(name)s

-- name: copied_beginnings
-- Some tables change places: where the others began is kept on both sides.
INSERT INTO beginnings (generation, topic, log_partition, tables_version, first_offset)
SELECT %(retired)s, topic, log_partition, tables_version, first_offset FROM beginnings WHERE generation = 'kintsugi'

-- name: copied_redactions
INSERT INTO redactions (generation, topic, log_partition, first_offset, paths)
SELECT %(retired)s, topic, log_partition, first_offset, paths FROM redactions WHERE generation = 'kintsugi'

-- name: fence
-- Whoever wrote the live tables has rows of the old ones in memory, and claims again.
UPDATE positions SET owner_epoch = owner_epoch + 1, updated_at = now() WHERE generation = 'kintsugi'

-- name: stand_elsewhere
-- Partitions in which a generation does not stand where the live tables do.
SELECT log_partition FROM (
  SELECT log_partition, coalesce(max(next_offset) FILTER (WHERE generation = 'kintsugi'), 0) AS live,
         coalesce(max(next_offset) FILTER (WHERE generation = %(name)s), 0) AS own
  FROM positions WHERE topic = %(topic)s AND generation IN ('kintsugi', %(name)s) GROUP BY log_partition) x
WHERE greatest(live, 0) <> greatest(own, 0) ORDER BY 1

-- name: begun_by
-- The version of the tables that wrote each partition from its first record on.
SELECT coalesce(min(version), 1) FROM (
  SELECT coalesce(max(b.tables_version) FILTER (WHERE b.first_offset = 0), 1) AS version
  FROM positions p LEFT JOIN beginnings b USING (generation, topic, log_partition)
  WHERE p.generation = 'kintsugi' AND p.topic = %(topic)s AND p.next_offset >= 0 GROUP BY p.log_partition) x

-- name: swapped
-- The name under which the tables stay that a generation took the place of: both are of one transaction.
SELECT r.name FROM generations r JOIN generations p ON r.created_at = p.changed_at
WHERE p.name = %(name)s AND p.state = 'promoted' AND r.state = 'retired'

-- name: not_validated
SELECT c.relname, con.conname
FROM pg_constraint con JOIN pg_class c ON c.oid = con.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'kintsugi' AND con.contype = 'f' AND NOT con.convalidated AND c.relname = ANY(%(tables)s)

-- name: forget_positions
DELETE FROM positions WHERE generation = %(name)s

-- name: forget_beginnings
DELETE FROM beginnings WHERE generation = %(name)s

-- name: forget_redactions
DELETE FROM redactions WHERE generation = %(name)s

-- name: forget_ranges
DELETE FROM generation_ranges WHERE generation = %(name)s

-- name: forget_parts
DELETE FROM generation_parts WHERE generation = %(name)s

-- name: columns
SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %(name)s AND c.relname = ANY(%(tables)s) AND a.attnum > 0 AND NOT a.attisdropped

-- name: indexes
SELECT c.relname, i.relname, con.conname, pg_get_indexdef(i.oid)
FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class c ON c.oid = x.indrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_constraint con ON con.conindid = i.oid AND con.contype = 'p'
WHERE n.nspname = %(name)s AND c.relname = ANY(%(tables)s)

-- name: keys
SELECT c.relname, con.conname, pg_get_constraintdef(con.oid)
FROM pg_constraint con JOIN pg_class c ON c.oid = con.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %(name)s AND con.contype = 'f' AND c.relname = ANY(%(tables)s)

-- name: grants
SELECT c.relname, g.privilege_type, CASE WHEN g.grantee = 0 THEN NULL ELSE pg_get_userbyid(g.grantee) END
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace, aclexplode(c.relacl) g
WHERE n.nspname = 'kintsugi' AND c.relname = ANY(%(tables)s) AND g.grantee <> c.relowner

-- name: looking
-- What else depends on live tables, and would stay with these when others take their place.
SELECT DISTINCT 'view', format('%%s.%%I', v.relnamespace::regnamespace, v.relname), v.relkind = 'm'
FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid JOIN pg_class v ON v.oid = r.ev_class
JOIN pg_class c ON c.oid = d.refobjid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass
  AND n.nspname = 'kintsugi' AND c.relname = ANY(%(tables)s) AND v.oid <> c.oid
UNION ALL
SELECT DISTINCT 'function', format('%%s.%%I(%%s)', p.pronamespace::regnamespace, p.proname,
                                   pg_get_function_identity_arguments(p.oid)), false
FROM pg_depend d JOIN pg_proc p ON p.oid = d.objid
JOIN pg_class c ON c.oid = d.refobjid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE d.classid = 'pg_proc'::regclass AND d.refclassid = 'pg_class'::regclass
  AND n.nspname = 'kintsugi' AND c.relname = ANY(%(tables)s)
UNION ALL
SELECT 'key', format('%%I of %%s.%%I', con.conname, own.relnamespace::regnamespace, own.relname), false
FROM pg_constraint con JOIN pg_class c ON c.oid = con.confrelid JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_class own ON own.oid = con.conrelid
WHERE con.contype = 'f' AND n.nspname = 'kintsugi' AND c.relname = ANY(%(tables)s)
  AND NOT (own.relnamespace = n.oid AND own.relname = ANY(%(all)s))
ORDER BY 1, 2

-- name: parked_workflows_as_live
-- Those of a generation: of the live ones, those of whose events the generation keeps some.
INSERT INTO parked_workflows
  (generation, topic, log_partition, workflow_id, first_offset, reason, detail, retries, parked_at)
SELECT %(name)s, topic, log_partition, workflow_id, first_offset, reason, detail, retries, parked_at
FROM parked_workflows w
WHERE w.generation = 'kintsugi' AND w.topic = %(topic)s AND w.log_partition = %(partition)s
  AND EXISTS (SELECT FROM parked_events e WHERE e.generation = %(name)s AND e.topic = w.topic
              AND e.log_partition = w.log_partition AND e.workflow_id = w.workflow_id)

-- name: parked_events_as_live
INSERT INTO parked_events
  (generation, topic, log_partition, log_offset, workflow_id, record_type, record_key, record_value, headers, created_at)
SELECT %(name)s, topic, log_partition, log_offset, workflow_id, record_type, record_key, record_value, headers, created_at
FROM parked_events
WHERE generation = 'kintsugi' AND topic = %(topic)s AND log_partition = %(partition)s
  AND log_offset >= %(start)s AND log_offset < %(end)s

-- name: unpark_workflows
DELETE FROM parked_workflows WHERE generation = %(name)s AND topic = %(topic)s AND log_partition = %(partition)s

-- name: unpark_events
DELETE FROM parked_events WHERE generation = %(name)s AND topic = %(topic)s AND log_partition = %(partition)s
  AND log_offset >= %(start)s

-- name: unpark_applied
-- What waited here and does not with the live tables any more.
DELETE FROM parked_events p
WHERE generation = %(name)s AND topic = %(topic)s AND log_partition = %(partition)s
  AND NOT EXISTS (SELECT FROM parked_events l WHERE l.generation = 'kintsugi' AND l.topic = p.topic
                  AND l.log_partition = p.log_partition AND l.log_offset = p.log_offset)

-- name: applied_since
-- What waited here, and the live tables have applied: neither does it wait there, nor was it set aside.
SELECT workflow_id::text, log_offset, record_type, record_key, record_value,
       (extract(epoch FROM created_at) * 1000000)::bigint
FROM parked_events p
WHERE generation = %(name)s AND topic = %(topic)s AND log_partition = %(partition)s AND log_offset < %(start)s
  AND NOT EXISTS (SELECT FROM parked_events l WHERE l.generation = 'kintsugi' AND l.topic = p.topic
                  AND l.log_partition = p.log_partition AND l.log_offset = p.log_offset)
  AND NOT EXISTS (SELECT FROM dead_letters d WHERE d.topic = p.topic AND d.log_partition = p.log_partition
                  AND d.log_offset = p.log_offset AND d.stage = %(stage)s)
ORDER BY workflow_id, log_offset

-- name: not_applied
SELECT log_offset FROM parked_events
WHERE generation = %(name)s AND topic = %(topic)s AND log_partition = %(partition)s
UNION ALL
SELECT log_offset FROM dead_letters WHERE topic = %(topic)s AND log_partition = %(partition)s AND stage = %(stage)s

-- name: parking
-- Partitions in which something waits.
SELECT DISTINCT log_partition FROM parked_events WHERE generation = %(name)s AND topic = %(topic)s

-- name: parked_differently
SELECT DISTINCT workflow_id::text FROM (
  SELECT workflow_id FROM parked_events
  WHERE generation IN ('kintsugi', %(name)s) AND topic = %(topic)s
  GROUP BY workflow_id, log_partition, log_offset HAVING count(*) = 1) x

-- name: both_places
-- Next offset of the generation and of the live tables.
SELECT coalesce((SELECT next_offset FROM positions WHERE generation = %(name)s AND topic = %(topic)s
                 AND log_partition = %(partition)s), 0),
       coalesce((SELECT next_offset FROM positions WHERE generation = 'kintsugi' AND topic = %(topic)s
                 AND log_partition = %(partition)s), 0)

-- name: hidden_since
INSERT INTO redactions (generation, topic, log_partition, first_offset, paths)
SELECT %(name)s, topic, log_partition, first_offset, paths FROM redactions
WHERE generation = 'kintsugi' AND topic = %(topic)s AND log_partition = %(partition)s
ON CONFLICT (generation, topic, log_partition, first_offset) DO UPDATE SET paths = EXCLUDED.paths

-- name: hidden_places
SELECT first_offset, paths FROM redactions
WHERE generation = %(name)s AND topic = %(topic)s AND log_partition = %(partition)s ORDER BY first_offset

-- name: kept_parked_workflows
-- What waits is the same on both sides when they change places.
UPDATE parked_workflows SET generation = %(retired)s WHERE generation = %(name)s

-- name: kept_parked_events
UPDATE parked_events SET generation = %(retired)s WHERE generation = %(name)s

-- name: forget_parked_workflows
DELETE FROM parked_workflows WHERE generation = %(name)s

-- name: forget_parked_events
DELETE FROM parked_events WHERE generation = %(name)s

-- name: worker
-- Who is at work on generations, since when.
SELECT a.pid, a.application_name, a.client_addr::text, a.backend_start
FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'advisory' AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.objid = %(lock)s AND l.granted

-- name: progress
-- By partition: events to fill in, parts done, of these since a moment, rows, of these since.
SELECT r.end_offset - r.first_offset, count(p.bucket), count(p.bucket) FILTER (WHERE p.added_at >= %(since)s),
       coalesce(sum(p.rows), 0)::bigint, coalesce(sum(p.rows) FILTER (WHERE p.added_at >= %(since)s), 0)::bigint
FROM generation_ranges r LEFT JOIN generation_parts p USING (generation, log_partition)
WHERE r.generation = %(name)s GROUP BY r.log_partition, r.first_offset, r.end_offset

-- name: now
SELECT clock_timestamp()

-- name: rights
SELECT current_user, current_database(), has_database_privilege(current_database(), 'CREATE'),
       has_schema_privilege('kintsugi', 'CREATE') AND has_schema_privilege('kintsugi', 'USAGE')

-- name: strange_owners
-- Whose the tables and the schemas are that this role could not move.
SELECT DISTINCT pg_get_userbyid(owner) FROM (
  SELECT c.relowner FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE n.nspname = ANY(%(schemas)s) AND c.relkind = 'r'
  UNION ALL
  SELECT nspowner FROM pg_namespace WHERE nspname = ANY(%(schemas)s) AND nspname <> 'kintsugi') x (owner)
WHERE NOT pg_has_role(owner, 'USAGE') ORDER BY 1

-- name: owners
SELECT c.relname, pg_get_userbyid(c.relowner) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'kintsugi' AND c.relname = ANY(%(tables)s) AND pg_get_userbyid(c.relowner) <> current_user
