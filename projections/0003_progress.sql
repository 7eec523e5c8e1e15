-- How many rows a part of a generation came to, in the first of its buckets, and when: from it follow rate and time left.
ALTER TABLE generation_parts
  ADD COLUMN rows BIGINT NOT NULL DEFAULT 0,
  ADD COLUMN added_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT clock_timestamp();
