CREATE TABLE workflow_debug_sessions (
  id UUID PRIMARY KEY,
  workflow_id UUID NOT NULL,
  session_type VARCHAR(50) NOT NULL,
  start_time TIMESTAMP WITH TIME ZONE NOT NULL,
  end_time TIMESTAMP WITH TIME ZONE,
  status VARCHAR(20) NOT NULL,
  config JSONB,
  results JSONB,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT NOW(),
  actor TEXT NOT NULL
);
