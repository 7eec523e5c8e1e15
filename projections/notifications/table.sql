CREATE TABLE notifications (
  id UUID PRIMARY KEY,
  incident_id UUID NOT NULL,
  channel VARCHAR(50) NOT NULL,
  kind VARCHAR(50) NOT NULL,
  outcome TEXT NOT NULL,
  tries INTEGER NOT NULL,
  detail TEXT,
  created_at TIMESTAMP WITH TIME ZONE NOT NULL,
  log_partition INTEGER NOT NULL,
  log_offset BIGINT NOT NULL
);
CREATE INDEX notifications_by_incident ON notifications (incident_id, created_at);
CREATE INDEX notifications_by_time ON notifications (created_at);
