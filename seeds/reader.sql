-- The role that Sluice connects as. It may read every table and view, also later ones, and owns nothing. One file for
-- the embedded database and for the init folder of the postgres image; the role is created once and then left as it is:
--
--     READER_NAME=reader READER_PASSWORD=secret psql --file seeds/reader.sql "$DATABASE_URL"

\set QUIET on
\set ON_ERROR_STOP on
\set reader sluice_reader
\getenv reader READER_NAME
\getenv password READER_PASSWORD
\getenv owner_without_password OWNER_WITHOUT_PASSWORD
\o /dev/null

-- Functions of other users are not called by mistake.
SET search_path = pg_catalog;

BEGIN;
-- One process at a time. The number is that of this file alone.
SELECT pg_advisory_xact_lock(5817234901);
SELECT NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'reader') AS missing \gset
\if :missing
    SELECT format(
        'CREATE ROLE %I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS IN ROLE pg_read_all_data',
        :'reader'
    ) \gexec
    SELECT format('ALTER ROLE %I SET default_transaction_read_only = on', :'reader') \gexec
    \if :{?password}
        SELECT format('ALTER ROLE %I PASSWORD %L', :'reader', :'password') \gexec
    \endif
\endif
COMMIT;

-- For a database that only this file and the reader use over the network, where a password is needed. The owner still
-- connects over the Unix socket.
\if :{?owner_without_password}
    SELECT format('ALTER ROLE %I PASSWORD NULL', current_user) WHERE current_user <> :'reader' \gexec
\endif
