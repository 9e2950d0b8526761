-- What ListOrders and ListOrderEvents go by.

-- Each serves one combination of owner and user, by status and newest first: a page costs the same at every depth. An
-- index without the status would read past every order of another one. Ordered by time alone they would be read for
-- every status at once, and then a rare status costs the whole table.
create index order_views_listed on order_views (status, create_time, order_id);
create index order_views_of_caller on order_views (caller, status, create_time, order_id);
create index order_views_of_user on order_views (user_id, status, create_time, order_id);
create index order_views_of_callers_user on order_views (caller, user_id, status, create_time, order_id);

-- DeadLetter.first_failure_time, or when the projector saw it if that is no time that can be: it is a header, and
-- anybody who may write to dlq chooses it.
alter table dead_letters add column occur_time timestamptz;
update dead_letters set occur_time = recorded_time;
alter table dead_letters alter column occur_time set not null, alter column occur_time set default now();
