-- name: claim
INSERT INTO positions AS p (generation, topic, log_partition, next_offset, owner_epoch, updated_at)
VALUES (%(generation)s, %(topic)s, %(partition)s, -1, 1, now())
ON CONFLICT (generation, topic, log_partition)
DO UPDATE SET owner_epoch = p.owner_epoch + 1, updated_at = now()
RETURNING next_offset, owner_epoch

-- name: begin
INSERT INTO beginnings (generation, topic, log_partition, tables_version, first_offset)
VALUES (%(generation)s, %(topic)s, %(partition)s, %(version)s, greatest(%(next_offset)s, 0))
ON CONFLICT DO NOTHING

-- name: redact
INSERT INTO redactions (generation, topic, log_partition, first_offset, paths)
SELECT %(generation)s, %(topic)s, %(partition)s, greatest(%(next_offset)s, 0), %(paths)s::text[]
WHERE %(paths)s::text[] <> coalesce(
  (SELECT paths FROM redactions
   WHERE generation = %(generation)s AND topic = %(topic)s AND log_partition = %(partition)s
   ORDER BY first_offset DESC LIMIT 1),
  '{}')
ON CONFLICT (generation, topic, log_partition, first_offset) DO UPDATE SET paths = EXCLUDED.paths

-- name: redactions
SELECT log_partition, first_offset, paths FROM redactions
WHERE generation = %(generation)s AND topic = %(topic)s ORDER BY log_partition, first_offset

-- name: beginnings
SELECT log_partition, tables_version, first_offset FROM beginnings
WHERE generation = %(generation)s AND topic = %(topic)s

-- name: advance
UPDATE positions SET next_offset = %(end)s, updated_at = now()
WHERE generation = %(generation)s AND topic = %(topic)s AND log_partition = %(partition)s
  AND next_offset IN (%(start)s, %(unset)s) AND owner_epoch = %(epoch)s

-- name: dead_letter
INSERT INTO dead_letters
  (topic, log_partition, log_offset, record_key, record_value, headers, stage, reason, detail, created_at)
VALUES
  (%(topic)s, %(partition)s, %(offset)s, %(key)s, %(value)s, %(headers)s, %(stage)s, %(reason)s, %(detail)s,
   timestamptz 'epoch' + %(timestamp_us)s * interval '1 microsecond')
ON CONFLICT DO NOTHING

-- name: positions
SELECT log_partition, next_offset FROM positions WHERE generation = %(generation)s AND topic = %(topic)s

-- name: dead_letter_places
-- What is parked is not applied either.
SELECT log_partition, log_offset, stage FROM dead_letters WHERE topic = %(topic)s
UNION ALL
SELECT log_partition, log_offset, 'TASK_PUT' FROM parked_events
WHERE generation = %(generation)s AND topic = %(topic)s

-- name: sample
SELECT id::text FROM workflows ORDER BY sha256(convert_to(%(seed)s || id::text, 'UTF8')) LIMIT %(size)s

-- name: parked_workflows
SELECT workflow_id::text FROM parked_workflows WHERE generation = %(generation)s AND topic = %(topic)s

-- name: held
-- Which tables a generation holds, if not all.
SELECT tables FROM generations WHERE name = %(generation)s

-- name: parked_places
SELECT log_partition, log_offset FROM parked_events WHERE generation = %(generation)s AND topic = %(topic)s
