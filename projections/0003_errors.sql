-- The outside system that failed, by which people select errors. It may be null, so a projector of the release before goes
-- on writing until it is restarted.
ALTER TABLE workflow_errors ADD COLUMN dependency TEXT;
