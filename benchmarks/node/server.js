// The usual way in Node.js, for comparison: Express, a query stream and csv-stringify, each used as its
// documentation shows it.
const { pipeline } = require("node:stream");
const express = require("express");
const { Pool } = require("pg");
const QueryStream = require("pg-query-stream");
const { stringify } = require("csv-stringify");

const pool = new Pool({ connectionString: process.env.DATABASE_URL });
const app = express();

app.get("/export/:file", async (request, response) => {
  const relation = request.params.file.replace(/\.csv$/, "");
  if (!/^[a-z_]+$/.test(relation)) return response.sendStatus(404);
  const client = await pool.connect();
  const rows = client.query(new QueryStream(`SELECT * FROM ${relation}`, [], { batchSize: 2000 }));
  response.type("text/csv");
  pipeline(rows, stringify({ header: true, cast: { date: (value) => value.toISOString() } }), response, (error) => {
    client.release(error);
  });
});

const server = app.listen(0, "127.0.0.1", () => {
  console.log(`Listening at: http://127.0.0.1:${server.address().port}`);
});
process.on("SIGINT", () => process.exit(0));
