package org.kalamdb.jdbc;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.sql.Connection;
import java.sql.PreparedStatement;
import java.sql.SQLException;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.function.Executable;

/** Errors name their cause, and the connection stays usable. */
class ErrorsTest {
  static void assertFails(String sqlstate, Executable call) {
    Exception failure = assertThrows(SQLException.class, call);
    StringBuilder texts = new StringBuilder();
    for (Throwable cause = failure; cause != null; cause = cause.getCause()) {
      texts.append(cause.getMessage()).append('\n');
    }
    assertTrue(texts.toString().contains("[" + sqlstate + "]"), texts.toString());
  }

  @Test
  void statementsThatCannotBeRun() throws SQLException {
    try (Connection connection = Database.connect()) {
      String table = Database.newNamespace(connection) + ".t";
      Database.execute(connection, "CREATE TABLE " + table + " (id BIGINT PRIMARY KEY, name TEXT NOT NULL)");
      Database.execute(connection, "INSERT INTO " + table + " VALUES (1, 'one')");
      assertFails("42601", () -> Database.rows(connection, "SELEC 1"));
      assertFails("42P01", () -> Database.rows(connection, "SELECT * FROM " + table + "x"));
      assertFails("42703", () -> Database.rows(connection, "SELECT colour FROM " + table));
      assertFails("23505", () -> Database.update(connection, "INSERT INTO " + table + " VALUES (1, 'again')"));
      assertFails("23502", () -> Database.update(connection, "INSERT INTO " + table + " VALUES (2, NULL)"));
      assertFails("42P07", () -> Database.execute(connection, "CREATE TABLE " + table + " (id BIGINT PRIMARY KEY)"));
      try (PreparedStatement insert = connection.prepareStatement("INSERT INTO " + table + " VALUES (?, ?)")) {
        insert.setLong(1, 1);
        insert.setString(2, "again");
        assertFails("23505", insert::executeUpdate);
        insert.setLong(1, 2);
        assertEquals(1, insert.executeUpdate()); // the name is still bound
      }
      assertEquals(
          List.of(List.of("1", "one"), List.of("2", "again")),
          Database.rows(connection, "SELECT * FROM " + table + " ORDER BY id"));
    }
  }

  @Test
  void aWrongPasswordIsRefused() {
    for (String user : List.of("root", "nobody")) {
      SQLException failure = assertThrows(SQLException.class, () -> Database.connect(user, "not the password"));
      assertTrue(String.valueOf(failure).toLowerCase().contains("password"), failure.toString());
    }
  }

  @Test
  void aUserMayNotAdminister() throws SQLException {
    try (Connection root = Database.connect()) {
      String name = Database.newUser(root);
      try (Connection guest = Database.connect(name, Database.PASSWORD)) {
        assertFails("42501", () -> Database.execute(guest, "CREATE NAMESPACE mine"));
        assertFails("42501", () -> Database.execute(guest, "DROP USER 'root'"));
      }
    }
  }
}
