-- What was tried on an incident's errors: strategies with how often each succeeded and failed.
ALTER TABLE incidents ADD COLUMN tried JSONB NOT NULL DEFAULT '[]';
