-- Tables of the projector itself. `generation` names the set of tables a position belongs to, so that a rebuild can
-- fill another set beside the live one.
CREATE TABLE positions (
  generation TEXT NOT NULL,
  topic TEXT NOT NULL,
  log_partition INTEGER NOT NULL,
  next_offset BIGINT NOT NULL,
  owner_epoch BIGINT NOT NULL,
  updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
  PRIMARY KEY (generation, topic, log_partition)
);

-- Records that could not be read or applied, as they were.
CREATE TABLE dead_letters (
  topic TEXT NOT NULL,
  log_partition INTEGER NOT NULL,
  log_offset BIGINT NOT NULL,
  record_key BYTEA,
  record_value BYTEA,
  headers JSONB,
  stage TEXT NOT NULL,
  reason TEXT NOT NULL,
  detail TEXT NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE NOT NULL,
  PRIMARY KEY (topic, log_partition, log_offset)
);
