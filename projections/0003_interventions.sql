-- Who looks after an intervention, what could be done about it, and which others it is like. Everything has a default, so
-- a projector of the release before goes on writing until it is restarted.
ALTER TABLE workflow_interventions
  ADD COLUMN claimed_by TEXT,
  ADD COLUMN claimed_at TIMESTAMP WITH TIME ZONE,
  ADD COLUMN options JSONB NOT NULL DEFAULT '[]',
  ADD COLUMN fingerprint TEXT,
  ADD COLUMN dependency TEXT,
  ADD COLUMN edited BOOLEAN NOT NULL DEFAULT false;
