-- Sample data for Sluice. One file for psql, for the init folder of the postgres image and for the
-- embedded database:
--
--     SEED_ROWS=1000000 psql --set ON_ERROR_STOP=1 --file seeds/init.sql "$DATABASE_URL"
--
-- The data depends on nothing but the row number: two runs with the same SEED_ROWS give the same rows,
-- in the same order, on every server. About one row in a thousand has unusual values (quotes,
-- delimiters, newlines, emoji, right-to-left text, a leading = or -, both NULL and the empty string).
-- Everything happens in one transaction, so an interrupted run leaves the database as it was.

\set QUIET on
\set ON_ERROR_STOP on
\pset tuples_only on
\pset format unaligned

\set seed_rows 1000000
\getenv seed_rows SEED_ROWS
\set chunk_rows 50000

SET client_encoding = 'UTF8';
SET client_min_messages = warning;
-- Nothing that somebody has created in the schema public before can be called.
SET search_path = pg_catalog;

BEGIN;

CREATE TABLE public.users (
    id                bigint PRIMARY KEY,
    name              text NOT NULL,
    email             text,
    signup_date       timestamptz NOT NULL,
    country_code      char(2) NOT NULL,
    subscription_tier text NOT NULL CHECK (subscription_tier IN ('free', 'basic', 'pro', 'enterprise')),
    lifetime_value    numeric(10, 2)
);

CREATE TABLE public.orders (
    id         bigint NOT NULL,
    user_id    bigint NOT NULL,
    ordered_at timestamptz NOT NULL,
    status     text NOT NULL,
    amount     numeric(10, 2) NOT NULL,
    note       text
) PARTITION BY RANGE (ordered_at);

-- One partition a month, 2024-01 to 2025-12, with bounds in UTC, independent of the session's time zone.
SELECT format(
    'CREATE TABLE public.orders_%s PARTITION OF public.orders FOR VALUES FROM (%L) TO (%L)',
    to_char(month, 'YYYY_MM'),
    to_char(month, 'YYYY-MM-DD') || ' 00:00:00+00',
    to_char(month + interval '1 month', 'YYYY-MM-DD') || ' 00:00:00+00'
)
FROM generate_series(timestamp '2024-01-01', timestamp '2025-12-01', interval '1 month') AS month
\gexec

-- The names are escaped (\0000 hexadecimal) so that this file reads the same in every editor.
CREATE FUNCTION pg_temp.sample_users(first bigint, last bigint) RETURNS SETOF public.users
LANGUAGE sql STABLE AS $function$
    SELECT
        n,
        CASE WHEN n % 1000 = 7 THEN
            (ARRAY[
                'Dwayne "The Rock" Johnson',
                'Doe, Jane',
                E'Two\nlines',
                E'Carriage\r\nreturn',
                U&'Zo\00EB \+01F680\+01F469\200D\+01F4BB',
                U&'\05D3\05D5\05D3 \05DC\05D5\05D9',
                U&'\0641\0627\0637\0645\0629 \0627\0644\0632\0647\0631\0627\0621',
                '=HYPERLINK("http://example.com","click")',
                '-2+3',
                '@SUM(A1:A9)',
                E'Tab\there; semicolon | pipe',
                '',
                E'back\\slash \\. \\N',
                '  spaces on both sides  ',
                U&'\674E\5C0F\9F99',
                '"'
            ])[1 + (n / 1000) % 16]
        ELSE
            (ARRAY['Ada', 'Alan', 'Barbara', 'Claude', 'Dennis', 'Donald', 'Edsger', 'Frances', 'Grace', 'Hedy',
                   'Ivan', 'Jean', 'John', 'Katherine', 'Ken', 'Leslie', 'Margaret', 'Niklaus', 'Radia', 'Tim'])
                [1 + (n * 7) % 20]
            || ' ' ||
            (ARRAY['Allen', 'Backus', 'Church', 'Dijkstra', 'Engelbart', 'Floyd', 'Goldberg', 'Hopper', 'Iverson',
                   'Johnson', 'Kay', 'Lamarr', 'Moore', 'Naur', 'Ousterhout', 'Perlman', 'Ritchie', 'Sutherland',
                   'Turing', 'Wirth', 'Yao'])[1 + (n / 20) % 21]
        END,
        CASE
            WHEN n % 1000 = 507 AND (n / 1000) % 2 = 0 THEN NULL
            WHEN n % 1000 = 507 THEN ''
            ELSE 'user' || n || '@example.com'
        END,
        timestamptz '2020-01-01 00:00:00+00' + (n * 7919 % 189216000) * interval '1 second',
        (ARRAY['DE', 'FR', 'US', 'GB', 'IN', 'JP', 'BR', 'NG', 'IL', 'EG', 'CN', 'NL', 'SE', 'MX', 'ZA', 'AU'])
            [1 + (n * 31 / 7) % 16],
        (ARRAY['free', 'free', 'free', 'basic', 'basic', 'pro', 'enterprise'])[1 + n % 7],
        CASE WHEN n % 1000 = 757 THEN NULL
             WHEN n % 1000 = 758 THEN -((n * 104729) % 100000) / 100.0
             ELSE ((n * 104729) % 1000000) / 100.0 END
    FROM generate_series(first, last) AS n
$function$;

CREATE FUNCTION pg_temp.sample_orders(first bigint, last bigint, users bigint) RETURNS SETOF public.orders
LANGUAGE sql STABLE AS $function$
    SELECT
        n,
        1 + (n * 6151) % users,
        timestamptz '2024-01-01 00:00:00+00' + (n * 1299709 % 63158400) * interval '1 second',
        (ARRAY['paid', 'paid', 'paid', 'shipped', 'shipped', 'refunded', 'cancelled'])[1 + n % 7],
        (100 + (n * 7727) % 49900) / 100.0,
        CASE WHEN n % 1000 = 3 THEN E'Gift wrap, "no\nreceipt"' WHEN n % 1000 = 4 THEN '' END
    FROM generate_series(first, last) AS n
$function$;

-- In chunks, so that a progress display has lines to show.
SELECT
    format('INSERT INTO public.users SELECT * FROM pg_temp.sample_users(%s, %s)',
           first, least(first + :chunk_rows - 1, :seed_rows)),
    format('SELECT %L', 'users ' || least(first + :chunk_rows - 1, :seed_rows) || ' of ' || :seed_rows)
FROM generate_series(1, :seed_rows, :chunk_rows) AS first
\gexec

SELECT
    format('INSERT INTO public.orders SELECT * FROM pg_temp.sample_orders(%s, %s, %s)',
           first, least(first + :chunk_rows - 1, :seed_rows / 2), :seed_rows),
    format('SELECT %L', 'orders ' || least(first + :chunk_rows - 1, :seed_rows / 2) || ' of ' || :seed_rows / 2)
FROM generate_series(1, :seed_rows / 2, :chunk_rows) AS first
\gexec

\echo indexes
CREATE INDEX users_signup_date ON public.users (signup_date);
CREATE INDEX users_country_code ON public.users (country_code);
ALTER TABLE public.orders ADD PRIMARY KEY (id, ordered_at);
CREATE INDEX orders_user_id ON public.orders (user_id);

CREATE VIEW public.revenue_by_country AS
SELECT
    users.country_code,
    count(DISTINCT users.id) AS customers,
    count(*) AS orders,
    sum(orders.amount) AS revenue
FROM public.orders
JOIN public.users ON users.id = orders.user_id
WHERE orders.status IN ('paid', 'shipped')
GROUP BY users.country_code
ORDER BY users.country_code;

COMMIT;

\echo statistics
VACUUM (ANALYZE) public.users;
VACUUM (ANALYZE) public.orders;
\echo done
