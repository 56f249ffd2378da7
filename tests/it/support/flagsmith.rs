//! A database with Flagsmith's tables, made from a recorded schema and filled with recorded rows.
//!
//! Every value goes through PostgreSQL's own conversion from text to the column's type, so this knows nothing of types.
//! Keys are there, sequences and foreign keys are not: the recorded rows carry their ids and come in an order that was
//! right once.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;

use flagpost::demo::cluster::Cluster;
use serde_json::{Map, Value as Json};
use tokio_postgres::Client;

/// Where the recorded webhooks point.
const RECORDED_RECEIVER: &str = "127.0.0.1:18080";

/// The tables of tags as Django's migrations make them; the recorded schemas do not have them.
pub(crate) const TAGS: &str = "
    CREATE TABLE tags_tag (id serial PRIMARY KEY, label varchar(100) NOT NULL, color varchar(10) NOT NULL,
        project_id integer NOT NULL REFERENCES projects_project (id) DEFERRABLE INITIALLY DEFERRED);
    CREATE TABLE features_feature_tags (id serial PRIMARY KEY,
        feature_id integer NOT NULL REFERENCES features_feature (id) DEFERRABLE INITIALLY DEFERRED,
        tag_id integer NOT NULL REFERENCES tags_tag (id) DEFERRABLE INITIALLY DEFERRED,
        UNIQUE (feature_id, tag_id));";

/// Tables as recorded: name, columns with types, primary key.
pub(crate) struct Schema {
    tables: Map<String, Json>,
}

impl Schema {
    /// Reads `schema.json` or `schema-2020.json`.
    pub(crate) fn read(path: &Path) -> Schema {
        let Json::Object(mut schema) = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
        else {
            panic!("{} is no object", path.display());
        };
        let Some(Json::Object(tables)) = schema.remove("tables") else {
            panic!("{} has no tables", path.display());
        };
        Schema { tables }
    }

    /// The names of all tables.
    pub(crate) fn tables(&self) -> impl Iterator<Item = &str> {
        self.tables.keys().map(String::as_str)
    }

    /// The columns of a table's primary key.
    pub(crate) fn primary_key(&self, table: &str) -> Vec<&str> {
        self.tables[table]["primary_key"].as_array().unwrap().iter().map(|c| c.as_str().unwrap()).collect()
    }

    /// The type of a column; `None` if this version of Flagsmith lacks it.
    pub(crate) fn column_type(&self, table: &str, column: &str) -> Option<&str> {
        let columns = self.tables[table]["columns"].as_array().unwrap();
        columns.iter().find(|c| c["name"] == column).map(|c| c["type"].as_str().unwrap())
    }

    /// Makes the tables.
    pub(crate) async fn create(&self, client: &Client) {
        let mut sql = String::new();
        for (name, table) in &self.tables {
            write!(sql, "CREATE TABLE {name} (").unwrap();
            for column in table["columns"].as_array().unwrap() {
                let not_null = if column["not_null"] == true { " NOT NULL" } else { "" };
                let (column, type_) = (column["name"].as_str().unwrap(), column["type"].as_str().unwrap());
                write!(sql, "{} {type_}{not_null}, ", identifier(column)).unwrap();
            }
            let key: Vec<String> = self.primary_key(name).into_iter().map(identifier).collect();
            writeln!(sql, "PRIMARY KEY ({}));", key.join(", ")).unwrap();
        }
        client.batch_execute(&sql).await.unwrap();
    }

    /// Fills the tables with rows of the form `{table: [row, …]}`, the recorded receiver replaced by `receiver`.
    pub(crate) async fn load(&self, client: &Client, rows: &Path, receiver: SocketAddr) {
        let rows: Json = read(rows, receiver);
        let mut sql = String::from("BEGIN;\n");
        for (table, rows) in rows.as_object().unwrap() {
            for row in rows.as_array().unwrap() {
                sql.push_str(&self.insert(table, row.as_object().unwrap()));
            }
        }
        sql.push_str("COMMIT;");
        client.batch_execute(&sql).await.unwrap();
    }

    /// The statement that inserts a row; columns that it does not give are NULL.
    pub(crate) fn insert(&self, table: &str, row: &Map<String, Json>) -> String {
        let columns = columns(row);
        format!("INSERT INTO {table} ({columns}) SELECT {columns} FROM {};\n", self.record(table, row))
    }

    /// The statement that sets the columns in `new` of the row that `key` names.
    pub(crate) fn update(&self, table: &str, key: &Map<String, Json>, new: &Map<String, Json>) -> String {
        let (columns, record) = (columns(new), self.record(table, new));
        format!(
            "UPDATE {table} SET ({columns}) = (SELECT {columns} FROM {record}) WHERE {};\n",
            self.is(table, key)
        )
    }

    /// The statement that deletes the row that `key` names.
    pub(crate) fn delete(&self, table: &str, key: &Map<String, Json>) -> String {
        format!("DELETE FROM {table} WHERE {};\n", self.is(table, key))
    }

    fn is(&self, table: &str, key: &Map<String, Json>) -> String {
        let columns = columns(key);
        format!("({columns}) = (SELECT {columns} FROM {})", self.record(table, key))
    }

    /// The columns given, as a row of the table.
    fn record(&self, table: &str, columns: &Map<String, Json>) -> String {
        let value = |(column, value): (&String, &Json)| (column.clone(), self.value(table, column, value));
        let text = Json::Object(columns.iter().map(value).collect()).to_string();
        format!("jsonb_populate_record(NULL::{table}, '{}'::jsonb)", text.replace('\'', "''"))
    }

    /// A recorded value as JSON of the column's type: values of JSON columns were recorded as text.
    pub(crate) fn value(&self, table: &str, column: &str, value: &Json) -> Json {
        match (self.column_type(table, column), value) {
            (Some("json" | "jsonb"), Json::String(text)) => serde_json::from_str(text).unwrap(),
            _ => value.clone(),
        }
    }
}

/// Makes the database `flagsmith` as it was before the first case, and connects to it.
pub(crate) async fn database(cluster: &Cluster, schema: &Schema, receiver: SocketAddr) -> Client {
    cluster.create_database("flagsmith").await.unwrap();
    let client = cluster.connect("flagsmith").await.unwrap();
    schema.create(&client).await;
    schema.load(&client, &super::golden().join("base.json"), receiver).await;
    client
}

/// Reads recorded JSON, the recorded receiver replaced by `receiver` in every text.
pub(crate) fn read(path: &Path, receiver: SocketAddr) -> Json {
    let text = std::fs::read_to_string(path).unwrap();
    serde_json::from_str(&text.replace(RECORDED_RECEIVER, &receiver.to_string())).unwrap()
}

fn columns(row: &Map<String, Json>) -> String {
    row.keys().map(|c| identifier(c)).collect::<Vec<_>>().join(", ")
}

/// Quoted, since some columns have the name of a keyword.
fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
