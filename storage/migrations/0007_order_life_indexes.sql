-- Statement by statement, in no transaction: orders go on meanwhile. What breaks off is begun anew.
-- Indexes of what the sweeps read, and the checks of what was there before them.

-- The orders that are PROCESSING: who expires.
drop index concurrently if exists orders_unpaid;
create index concurrently orders_unpaid on orders (expire_time, order_id) where status = 2;

-- The orders that are CANCELLED or EXPIRED: is their money settled?
drop index concurrently if exists orders_called_off;
create index concurrently orders_called_off on orders (update_time) where status in (8, 9);

drop index concurrently if exists payments_refund_due;
create index concurrently payments_refund_due on payments (order_id) where refund_due;

drop index concurrently if exists refunds_open;
create index concurrently refunds_open on refunds (first_send_time) where state = 'intended';

alter table orders validate constraint orders_refunded_minor_check;
alter table payments validate constraint payments_state_check;
