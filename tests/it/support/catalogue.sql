-- What a database consists of, a line for each thing with all that it was given: what "pg_dump --schema-only" writes, as far
-- as flagpost could leave something behind. Runs on every version that flagpost supports.

-- So every name is written with its schema.
SET search_path = pg_catalog;

WITH schemas AS (
    SELECT * FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
), relations AS (
    SELECT c.*, c.oid::regclass::text AS name FROM pg_class c WHERE relnamespace IN (SELECT oid FROM schemas)
), things (kind, name, owner, acl, what) AS (
    SELECT 'schema', nspname::text, nspowner, coalesce(nspacl, acldefault('n', nspowner)), '' FROM schemas
    UNION ALL
    SELECT 'relation', c.name, c.relowner,
           coalesce(c.relacl, acldefault(CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", c.relowner)),
           concat_ws(' ', c.relkind, c.relpersistence, c.relreplident, c.relrowsecurity, c.reloptions, toast.reloptions)
    FROM relations c LEFT JOIN pg_class toast ON toast.oid = c.reltoastrelid
    UNION ALL
    SELECT 'column', c.name || '.' || a.attname, NULL, a.attacl,
           concat_ws(' ', a.attnum, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated,
                     a.attstorage, a.attoptions, pg_get_expr(d.adbin, d.adrelid))
    FROM relations c
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    UNION ALL
    SELECT 'index', c.name, NULL, NULL, concat_ws(' ', pg_get_indexdef(c.oid), i.indisvalid, i.indisreplident)
    FROM relations c JOIN pg_index i ON i.indexrelid = c.oid
    UNION ALL
    SELECT 'sequence', c.name, NULL, NULL, (to_jsonb(s) - 'seqrelid')::text
    FROM relations c JOIN pg_sequence s ON s.seqrelid = c.oid
    UNION ALL
    SELECT 'view', c.name, NULL, NULL, pg_get_viewdef(c.oid) FROM relations c WHERE c.relkind IN ('v', 'm')
    UNION ALL
    SELECT 'constraint', c.name || '.' || o.conname, NULL, NULL, concat_ws(' ', pg_get_constraintdef(o.oid), o.convalidated)
    FROM relations c JOIN pg_constraint o ON o.conrelid = c.oid
    UNION ALL
    SELECT 'trigger', c.name || '.' || t.tgname, NULL, NULL, concat_ws(' ', pg_get_triggerdef(t.oid), t.tgenabled)
    FROM relations c JOIN pg_trigger t ON t.tgrelid = c.oid WHERE NOT t.tgisinternal
    UNION ALL
    SELECT 'rule', c.name || '.' || r.rulename, NULL, NULL, pg_get_ruledef(r.oid)
    FROM relations c JOIN pg_rewrite r ON r.ev_class = c.oid
    UNION ALL
    SELECT 'policy', c.name || '.' || p.polname, NULL, NULL, '' FROM relations c JOIN pg_policy p ON p.polrelid = c.oid
    UNION ALL
    SELECT 'function', p.oid::regprocedure::text, p.proowner, coalesce(p.proacl, acldefault('f', p.proowner)),
           CASE WHEN p.prokind IN ('f', 'p') THEN pg_get_functiondef(p.oid) END
    FROM pg_proc p WHERE p.pronamespace IN (SELECT oid FROM schemas)
    UNION ALL
    SELECT 'type', t.oid::regtype::text, t.typowner, coalesce(t.typacl, acldefault('T', t.typowner)), t.typtype::text
    FROM pg_type t WHERE t.typnamespace IN (SELECT oid FROM schemas)
    UNION ALL
    SELECT 'publication', p.pubname::text, p.pubowner, NULL, (to_jsonb(p) - 'oid')::text FROM pg_publication p
    UNION ALL
    -- From version 15 on with the columns.
    SELECT 'published', p.pubname::text, NULL, NULL, to_jsonb(p)::text FROM pg_publication_tables p
    UNION ALL
    SELECT 'default privileges', d.defaclnamespace::text, d.defaclrole, d.defaclacl, d.defaclobjtype::text FROM pg_default_acl d
    UNION ALL
    SELECT 'event trigger', e.evtname::text, e.evtowner, NULL, (to_jsonb(e) - 'oid')::text FROM pg_event_trigger e
    UNION ALL
    SELECT 'extension', e.extname::text, e.extowner, NULL, e.extversion FROM pg_extension e
)
SELECT concat_ws(' | ', kind, name, pg_get_userbyid(owner),
                 (SELECT string_agg(item::text, ' ' ORDER BY item::text COLLATE "C") FROM unnest(acl) item), what)
FROM things ORDER BY 1;
