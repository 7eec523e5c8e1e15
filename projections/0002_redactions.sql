-- Which fields the rows of a partition hide, from which offset on: those of the projector that made them.
CREATE TABLE redactions (
  generation TEXT NOT NULL,
  topic TEXT NOT NULL,
  log_partition INTEGER NOT NULL,
  first_offset BIGINT NOT NULL,
  paths TEXT[] NOT NULL,
  PRIMARY KEY (generation, topic, log_partition, first_offset)
);
