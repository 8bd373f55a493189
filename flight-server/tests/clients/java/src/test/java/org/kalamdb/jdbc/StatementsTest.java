package org.kalamdb.jdbc;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.math.BigDecimal;
import java.sql.Connection;
import java.sql.Date;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.sql.Time;
import java.sql.Timestamp;
import java.sql.Types;
import java.time.LocalDate;
import java.time.LocalDateTime;
import java.time.LocalTime;
import java.util.Arrays;
import java.util.List;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;

/** Statements, prepared statements with every bound type, and batches. */
class StatementsTest {
  private Connection connection;
  private String namespace;

  @BeforeEach
  void connect() throws SQLException {
    connection = Database.connect();
    namespace = Database.newNamespace(connection);
  }

  @AfterEach
  void close() throws SQLException {
    connection.close();
  }

  @Test
  void ddlThenInsertUpdateDeleteAndSelect() throws SQLException {
    String table = namespace + ".t";
    Database.execute(connection, "CREATE TABLE " + table + " (id BIGINT PRIMARY KEY, name TEXT NOT NULL, n INTEGER)");
    assertEquals(3, Database.update(connection, "INSERT INTO " + table + " VALUES (1, 'a', 1), (2, 'b', NULL), (3, 'c', 3)"));
    assertEquals(2, Database.update(connection, "UPDATE " + table + " SET n = 10 WHERE id <= 2"));
    assertEquals(1, Database.update(connection, "DELETE FROM " + table + " WHERE id = 3"));
    assertEquals(0, Database.update(connection, "DELETE FROM " + table + " WHERE id = 3"));
    assertEquals(
        List.of(List.of("1", "a", "10"), List.of("2", "b", "10")),
        Database.rows(connection, "SELECT * FROM " + table + " ORDER BY id"));
    Database.execute(connection, "DROP TABLE " + table);
  }

  @Test
  void executeTellsAQueryFromAnUpdate() throws SQLException {
    String table = namespace + ".t";
    try (Statement statement = connection.createStatement()) {
      assertFalse(statement.execute("CREATE TABLE " + table + " (id BIGINT PRIMARY KEY)"));
      assertFalse(statement.execute("INSERT INTO " + table + " VALUES (1), (2)"));
      assertEquals(2, statement.getUpdateCount());
      assertTrue(statement.execute("SELECT id FROM " + table + " ORDER BY id"));
      try (ResultSet result = statement.getResultSet()) {
        assertTrue(result.next());
        assertEquals(1, result.getLong("id"));
      }
    }
  }

  private static final String TYPED =
      "(id INTEGER PRIMARY KEY, c_int INTEGER, c_long BIGINT, c_short SMALLINT, c_double DOUBLE PRECISION, c_float REAL, "
          + "c_string TEXT, c_boolean BOOLEAN, c_bytes BYTES, c_date DATE, c_time TIME, c_timestamp TIMESTAMP, "
          + "c_decimal DECIMAL(12, 3), c_json JSON)";

  @Test
  void everyBoundTypeComesBack() throws SQLException {
    String table = namespace + ".typed";
    Database.execute(connection, "CREATE TABLE " + table + " " + TYPED);
    Date date = Date.valueOf(LocalDate.of(2024, 2, 29));
    Time time = Time.valueOf(LocalTime.of(23, 59, 58));
    Timestamp timestamp = Timestamp.valueOf(LocalDateTime.of(2026, 2, 28, 13, 14, 15, 123_000_000));
    byte[] bytes = {0, 1, -1, 127, -128};
    String sql = "INSERT INTO " + table + " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
    try (PreparedStatement insert = connection.prepareStatement(sql)) {
      insert.setInt(1, 1);
      insert.setInt(2, Integer.MIN_VALUE);
      insert.setLong(3, Long.MAX_VALUE);
      insert.setShort(4, Short.MIN_VALUE);
      insert.setDouble(5, 0.1);
      insert.setFloat(6, -1.25f);
      insert.setString(7, "grüße, 世界 'quoted'");
      insert.setBoolean(8, true);
      insert.setBytes(9, bytes);
      insert.setDate(10, date);
      insert.setTime(11, time);
      insert.setTimestamp(12, timestamp);
      insert.setBigDecimal(13, new BigDecimal("-123456789.125"));
      insert.setString(14, "{\"a\": [1, 2]}");
      assertEquals(1, insert.executeUpdate());
    }
    try (Statement statement = connection.createStatement();
        ResultSet row = statement.executeQuery("SELECT * FROM " + table)) {
      assertTrue(row.next());
      assertEquals(Integer.MIN_VALUE, row.getInt("c_int"));
      assertEquals(Long.MAX_VALUE, row.getLong("c_long"));
      assertEquals(Short.MIN_VALUE, row.getShort("c_short"));
      assertEquals(0.1, row.getDouble("c_double"));
      assertEquals(-1.25f, row.getFloat("c_float"));
      assertEquals("grüße, 世界 'quoted'", row.getString("c_string"));
      assertTrue(row.getBoolean("c_boolean"));
      assertArrayEquals(bytes, row.getBytes("c_bytes"));
      assertEquals(date.toString(), row.getDate("c_date").toString());
      assertEquals(time.toString(), row.getTime("c_time").toString());
      assertEquals(timestamp, row.getTimestamp("c_timestamp"));
      assertEquals(new BigDecimal("-123456789.125"), row.getBigDecimal("c_decimal"));
      assertEquals("{\"a\": [1, 2]}", row.getString("c_json"));
      for (int column = 1; column <= row.getMetaData().getColumnCount(); column++) {
        row.getObject(column); // the call of a generic tool
        assertFalse(row.wasNull());
      }
      assertFalse(row.next());
    }
  }

  @Test
  void setNullOfEveryType() throws SQLException {
    String table = namespace + ".typed";
    Database.execute(connection, "CREATE TABLE " + table + " " + TYPED);
    int[] types = {
      Types.INTEGER, Types.BIGINT, Types.SMALLINT, Types.DOUBLE, Types.REAL, Types.VARCHAR, Types.BOOLEAN,
      Types.VARBINARY, Types.DATE, Types.TIME, Types.TIMESTAMP, Types.DECIMAL, Types.VARCHAR
    };
    String sql = "INSERT INTO " + table + " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
    try (PreparedStatement insert = connection.prepareStatement(sql)) {
      insert.setInt(1, 1);
      for (int number = 0; number < types.length; number++) {
        insert.setNull(number + 2, types[number]);
      }
      assertEquals(1, insert.executeUpdate());
    }
    try (Statement statement = connection.createStatement();
        ResultSet row = statement.executeQuery("SELECT * FROM " + table)) {
      assertTrue(row.next());
      for (int column = 2; column <= row.getMetaData().getColumnCount(); column++) {
        assertNull(row.getObject(column), row.getMetaData().getColumnName(column));
        assertTrue(row.wasNull());
      }
    }
  }

  @Test
  void everyTypeCanBeAFilterParameter() throws SQLException {
    String table = namespace + ".typed";
    Database.execute(connection, "CREATE TABLE " + table + " " + TYPED);
    Database.execute(
        connection,
        "INSERT INTO " + table + " VALUES (1, 2, 3, 4, 0.5, 1.5, 's', true, X'0102', DATE '2024-02-29', TIME '10:11:12', "
            + "TIMESTAMP '2026-01-02 03:04:05', 1.250, '{}')");
    assertEquals("1", only(table, "c_int", statement -> statement.setInt(1, 2)));
    assertEquals("1", only(table, "c_long", statement -> statement.setLong(1, 3)));
    assertEquals("1", only(table, "c_short", statement -> statement.setShort(1, (short) 4)));
    assertEquals("1", only(table, "c_double", statement -> statement.setDouble(1, 0.5)));
    assertEquals("1", only(table, "c_float", statement -> statement.setFloat(1, 1.5f)));
    assertEquals("1", only(table, "c_string", statement -> statement.setString(1, "s")));
    assertEquals("1", only(table, "c_boolean", statement -> statement.setBoolean(1, true)));
    assertEquals("1", only(table, "c_bytes", statement -> statement.setBytes(1, new byte[] {1, 2})));
    assertEquals("1", only(table, "c_date", statement -> statement.setDate(1, Date.valueOf("2024-02-29"))));
    assertEquals("1", only(table, "c_time", statement -> statement.setTime(1, Time.valueOf("10:11:12"))));
    assertEquals("1", only(table, "c_timestamp",
        statement -> statement.setTimestamp(1, Timestamp.valueOf("2026-01-02 03:04:05"))));
    assertEquals("1", only(table, "c_decimal", statement -> statement.setBigDecimal(1, new BigDecimal("1.250"))));
  }

  private interface Binder {
    void bind(PreparedStatement statement) throws SQLException;
  }

  private String only(String table, String column, Binder binder) throws SQLException {
    String sql = "SELECT id FROM " + table + " WHERE " + column + " = ?";
    try (PreparedStatement select = connection.prepareStatement(sql)) {
      binder.bind(select);
      try (ResultSet result = select.executeQuery()) {
        return result.next() ? result.getString(1) : "no row by " + column;
      }
    }
  }

  @Test
  void aPreparedQueryCanBeRunAgainWithOtherParameters() throws SQLException {
    String table = namespace + ".t";
    Database.execute(connection, "CREATE TABLE " + table + " (id BIGINT PRIMARY KEY, name TEXT)");
    Database.execute(connection, "INSERT INTO " + table + " VALUES (1, 'a'), (2, 'b'), (3, 'c')");
    try (PreparedStatement select = connection.prepareStatement("SELECT name FROM " + table + " WHERE id = ?")) {
      assertEquals("name", select.getMetaData().getColumnName(1));
      assertEquals(1, select.getParameterMetaData().getParameterCount());
      for (long id = 1; id <= 3; id++) {
        select.setLong(1, id);
        try (ResultSet result = select.executeQuery()) {
          assertTrue(result.next());
          assertEquals(String.valueOf((char) ('a' + id - 1)), result.getString("name"));
          assertFalse(result.next());
        }
      }
      select.setLong(1, 99);
      try (ResultSet result = select.executeQuery()) {
        assertEquals(1, result.getMetaData().getColumnCount());
        assertFalse(result.next());
      }
    }
  }

  @Test
  void executeBatchInsertsEveryRow() throws SQLException {
    String table = namespace + ".batch";
    Database.execute(connection, "CREATE TABLE " + table + " (id BIGINT PRIMARY KEY, name TEXT)");
    try (PreparedStatement insert = connection.prepareStatement("INSERT INTO " + table + " VALUES (?, ?)")) {
      for (int id = 0; id < 500; id++) {
        insert.setLong(1, id);
        if (id % 5 == 0) {
          insert.setNull(2, Types.VARCHAR);
        } else {
          insert.setString(2, "name " + id);
        }
        insert.addBatch();
      }
      // The driver sends the batch as one message and returns its single count.
      assertEquals(500, Arrays.stream(insert.executeBatch()).sum());
    }
    assertEquals(
        List.of(List.of("500", "400")), Database.rows(connection, "SELECT count(*), count(name) FROM " + table));
  }

  @Test
  void aFailedBatchLeavesNothing() throws SQLException {
    String table = namespace + ".batch";
    Database.execute(connection, "CREATE TABLE " + table + " (id BIGINT PRIMARY KEY)");
    try (PreparedStatement insert = connection.prepareStatement("INSERT INTO " + table + " VALUES (?)")) {
      for (long id : new long[] {1, 2, 1}) {
        insert.setLong(1, id);
        insert.addBatch();
      }
      ErrorsTest.assertFails("23505", insert::executeBatch);
    }
    assertEquals(List.of(List.of("0")), Database.rows(connection, "SELECT count(*) FROM " + table));
  }

  @Test
  void resultMetaDataDescribesTheColumns() throws SQLException {
    String table = namespace + ".t";
    Database.execute(connection, "CREATE TABLE " + table + " (id BIGINT PRIMARY KEY, price DECIMAL(10, 2), at TIMESTAMP)");
    // The table needs a row: for an empty result the driver's Statement lists every column twice.
    Database.execute(connection, "INSERT INTO " + table + " VALUES (1, 2.50, NULL)");
    try (Statement statement = connection.createStatement();
        ResultSet result = statement.executeQuery("SELECT id, price, at, id + 1 AS next FROM " + table)) {
      assertEquals(4, result.getMetaData().getColumnCount());
      assertEquals(Types.BIGINT, result.getMetaData().getColumnType(1));
      assertEquals(Types.DECIMAL, result.getMetaData().getColumnType(2));
      assertEquals(Types.TIMESTAMP, result.getMetaData().getColumnType(3));
      assertEquals("next", result.getMetaData().getColumnLabel(4));
      assertTrue(result.next());
    }
  }

  @Test
  void aPreparedResultWithoutRowsHasItsColumns() throws SQLException {
    String table = namespace + ".t";
    Database.execute(connection, "CREATE TABLE " + table + " (id BIGINT PRIMARY KEY, price DECIMAL(10, 2), at TIMESTAMP)");
    try (PreparedStatement select =
            connection.prepareStatement("SELECT id, price, at, id + 1 AS next FROM " + table);
        ResultSet result = select.executeQuery()) {
      assertEquals(4, result.getMetaData().getColumnCount());
      assertEquals("next", result.getMetaData().getColumnLabel(4));
      assertFalse(result.next());
    }
  }

  @Test
  void joinsAndAggregatesAndManyRows() throws SQLException {
    String table = namespace + ".many";
    Database.execute(connection, "CREATE TABLE " + table + " (id BIGINT PRIMARY KEY, part BIGINT NOT NULL)");
    assertEquals(20_000, Database.update(connection,
        "INSERT INTO " + table + " SELECT value, value % 7 FROM generate_series(1, 20000)"));
    try (Statement statement = connection.createStatement();
        ResultSet result = statement.executeQuery("SELECT id FROM " + table + " ORDER BY id")) {
      long expected = 0;
      while (result.next()) {
        assertEquals(++expected, result.getLong(1));
      }
      assertEquals(20_000, expected);
    }
    assertEquals(
        List.of(List.of("0", "2857"), List.of("1", "2858")),
        Database.rows(connection, "SELECT a.part, count(*) FROM " + table + " a JOIN " + table
            + " b ON a.id = b.id GROUP BY a.part ORDER BY a.part LIMIT 2"));
  }

  @Test
  void closingAResultEarlyLeavesTheConnectionUsable() throws SQLException {
    try (Statement statement = connection.createStatement()) {
      try (ResultSet result = statement.executeQuery("SELECT value FROM generate_series(1, 1000000)")) {
        assertTrue(result.next());
      }
      try (ResultSet result = statement.executeQuery("SELECT 1")) {
        assertTrue(result.next());
      }
    }
  }
}
