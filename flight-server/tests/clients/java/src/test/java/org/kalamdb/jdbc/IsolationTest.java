package org.kalamdb.jdbc;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.sql.Connection;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.util.List;
import org.junit.jupiter.api.Test;

/** Two users and one USER table: the same statement returns each user's own rows. */
class IsolationTest {
  @Test
  void eachUserSeesTheirOwnRows() throws SQLException {
    try (Connection root = Database.connect()) {
      String notes = Database.newNamespace(root) + ".notes";
      Database.execute(root, "CREATE USER TABLE " + notes + " (id BIGINT PRIMARY KEY, body TEXT)");
      try (Connection ann = Database.connect(Database.newUser(root), Database.PASSWORD);
          Connection bob = Database.connect(Database.newUser(root), Database.PASSWORD)) {
        insert(ann, notes, "of ann");
        insert(bob, notes, "of bob");
        assertEquals(List.of(List.of("1", "of ann")), Database.rows(ann, "SELECT * FROM " + notes));
        assertEquals(List.of(List.of("1", "of bob")), Database.rows(bob, "SELECT * FROM " + notes));
        assertEquals(List.of(), Database.rows(root, "SELECT * FROM " + notes));
        try (PreparedStatement select = bob.prepareStatement("SELECT body FROM " + notes + " WHERE id = ?")) {
          select.setLong(1, 1);
          try (ResultSet result = select.executeQuery()) {
            assertEquals(List.of(List.of("of bob")), Database.rows(result));
          }
        }
        assertEquals(1, Database.update(bob, "DELETE FROM " + notes));
        assertEquals(List.of(List.of("1", "of ann")), Database.rows(ann, "SELECT * FROM " + notes));
      }
    }
  }

  private static void insert(Connection connection, String notes, String body) throws SQLException {
    try (PreparedStatement insert = connection.prepareStatement("INSERT INTO " + notes + " VALUES (?, ?)")) {
      insert.setLong(1, 1);
      insert.setString(2, body);
      assertEquals(1, insert.executeUpdate());
    }
  }
}
