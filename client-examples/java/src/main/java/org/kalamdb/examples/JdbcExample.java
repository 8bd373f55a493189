package org.kalamdb.examples;

import java.math.BigDecimal;
import java.net.URI;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.sql.Timestamp;
import java.time.LocalDateTime;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import java.util.Properties;

/** Writes orders and reads a report with the Arrow Flight SQL JDBC driver. */
public final class JdbcExample {
  public static void main(String[] arguments) throws SQLException {
    URI server = URI.create(Optional.ofNullable(System.getenv("KALAMDB_URL")).orElse("grpc://127.0.0.1:8815"));
    String url = "jdbc:arrow-flight-sql://" + server.getHost() + ":" + server.getPort() + "?useEncryption=false";
    Properties login = new Properties();
    login.put("user", "root");
    login.put("password", System.getenv("KALAMDB_PASSWORD"));

    try (Connection connection = DriverManager.getConnection(url, login)) {
      try (Statement statement = connection.createStatement()) {
        statement.execute("CREATE NAMESPACE IF NOT EXISTS examples");
        statement.execute("DROP TABLE IF EXISTS examples.orders");
        statement.execute(
            "CREATE TABLE examples.orders (id BIGINT PRIMARY KEY, customer TEXT NOT NULL, total DECIMAL(10, 2), placed TIMESTAMP)");
      }

      // A batch travels as one message and is one commit.
      try (PreparedStatement insert = connection.prepareStatement("INSERT INTO examples.orders VALUES (?, ?, ?, ?)")) {
        for (int id = 1; id <= 100; id++) {
          insert.setLong(1, id);
          insert.setString(2, id % 2 == 0 ? "ann" : "bob");
          insert.setBigDecimal(3, new BigDecimal("9.99"));
          insert.setTimestamp(4, Timestamp.valueOf(LocalDateTime.of(2026, 1, 1, 12, 0).plusMinutes(id)));
          insert.addBatch();
        }
        insert.executeBatch();
      }

      List<String> report = new ArrayList<>();
      String sql = "SELECT customer, count(*) AS orders, sum(total) AS total FROM examples.orders WHERE id <= ? "
          + "GROUP BY customer ORDER BY customer";
      try (PreparedStatement select = connection.prepareStatement(sql)) {
        select.setLong(1, 50);
        try (ResultSet row = select.executeQuery()) {
          while (row.next()) {
            report.add(row.getString("customer") + " " + row.getLong("orders") + " " + row.getBigDecimal("total"));
          }
        }
      }
      System.out.println(report);
      if (!report.equals(List.of("ann 25 249.75", "bob 25 249.75"))) {
        throw new AssertionError("unexpected report: " + report);
      }
    }
  }
}
