-- Sets of the projected tables: each is filled in a schema of its own, may become the live one, and stays for a rollback.
CREATE TABLE generations (
  name TEXT PRIMARY KEY,
  number INTEGER NOT NULL UNIQUE,
  state TEXT NOT NULL,
  tables_version INTEGER NOT NULL,
  built_by TEXT,
  differing BIGINT,
  actor TEXT NOT NULL,
  reason TEXT NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT now(),
  changed_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT now()
);

-- Where the first filling of a partition begins and ends. What lies behind is applied batch by batch.
CREATE TABLE generation_ranges (
  generation TEXT NOT NULL,
  log_partition INTEGER NOT NULL,
  first_offset BIGINT NOT NULL,
  end_offset BIGINT NOT NULL,
  PRIMARY KEY (generation, log_partition)
);

-- Workflows of a partition that are filled in, by the bucket of their key: what a filling that was cut short need not
-- do again.
CREATE TABLE generation_parts (
  generation TEXT NOT NULL,
  log_partition INTEGER NOT NULL,
  bucket INTEGER NOT NULL,
  PRIMARY KEY (generation, log_partition, bucket)
);
