-- Statement by statement, in no transaction: orders go on meanwhile. What breaks off is begun anew.
-- What the figures of open dead letters are read from: all but their bytes, which are most of the table.

drop index concurrently if exists dead_letters_listed;
create index concurrently dead_letters_listed on dead_letters (partition, record_offset)
    include (group_name, error_class, recorded_time);
