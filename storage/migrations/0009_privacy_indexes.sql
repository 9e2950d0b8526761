-- Statement by statement, in no transaction: orders go on meanwhile. What breaks off is begun anew.
-- The outcomes that an erasure has to look through: those of earlier versions, fewer with every purge, and then none.

drop index concurrently if exists outcomes_with_contact;
create index concurrently outcomes_with_contact on outcomes (group_name, event_id) where holds_contact;
