package org.kalamdb.jdbc;

import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.List;
import java.util.Properties;
import java.util.concurrent.atomic.AtomicInteger;

/**
 * The server under test, given by KALAMDB_HOST, KALAMDB_PORT and KALAMDB_PASSWORD, and the tests' shared
 * helpers: connections, users and unique names.
 */
final class Database {
  static final String PASSWORD = "a long enough secret";

  private static final AtomicInteger NUMBER = new AtomicInteger();

  private Database() {}

  static String url() {
    return "jdbc:arrow-flight-sql://" + setting("KALAMDB_HOST") + ":" + setting("KALAMDB_PORT") + "?useEncryption=false";
  }

  static Connection connect() throws SQLException {
    return connect("root", setting("KALAMDB_PASSWORD"));
  }

  static Connection connect(String user, String password) throws SQLException {
    Properties properties = new Properties();
    properties.put("user", user);
    properties.put("password", password);
    return DriverManager.getConnection(url(), properties);
  }

  /** Creates a user of role `user` with the password {@link #PASSWORD} and returns the name. */
  static String newUser(Connection root) throws SQLException {
    String name = "jdbc" + NUMBER.incrementAndGet();
    execute(root, "CREATE USER '" + name + "' WITH PASSWORD '" + PASSWORD + "' ROLE user");
    return name;
  }

  /** Creates an empty namespace and returns its name. */
  static String newNamespace(Connection root) throws SQLException {
    String name = "jdbc_ns" + NUMBER.incrementAndGet();
    execute(root, "CREATE NAMESPACE " + name);
    return name;
  }

  static void execute(Connection connection, String sql) throws SQLException {
    try (Statement statement = connection.createStatement()) {
      statement.execute(sql);
    }
  }

  static int update(Connection connection, String sql) throws SQLException {
    try (Statement statement = connection.createStatement()) {
      return statement.executeUpdate(sql);
    }
  }

  /** Returns all rows of a query, each as the strings of its columns. */
  static List<List<String>> rows(Connection connection, String sql) throws SQLException {
    try (Statement statement = connection.createStatement();
        ResultSet result = statement.executeQuery(sql)) {
      return rows(result);
    }
  }

  static List<List<String>> rows(ResultSet result) throws SQLException {
    int columns = result.getMetaData().getColumnCount();
    List<List<String>> rows = new ArrayList<>();
    while (result.next()) {
      List<String> row = new ArrayList<>();
      for (int column = 1; column <= columns; column++) {
        row.add(result.getString(column));
      }
      rows.add(row);
    }
    return rows;
  }

  private static String setting(String name) {
    String value = System.getenv(name);
    if (value == null) {
      throw new IllegalStateException("set " + name + ", or let the Makefile start the server");
    }
    return value;
  }
}
