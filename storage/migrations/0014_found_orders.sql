-- What orders are found by. Its indexes are in the next file.
-- Expands only: columns that need not be written.

alter table order_events
    add column trace_id uuid, -- of the record that it came with; null: it came with none
    add column declined_reference text; -- of a PAYMENT_FAILED: the gateway's id of the charge that it declined
