-- Of a generation that holds some tables alone: which. NULL: it holds all.
ALTER TABLE generations ADD COLUMN tables TEXT[];
