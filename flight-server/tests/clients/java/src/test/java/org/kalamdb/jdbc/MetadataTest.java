package org.kalamdb.jdbc;

import static org.junit.jupiter.api.Assertions.assertAll;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.lang.reflect.Method;
import java.sql.Connection;
import java.sql.DatabaseMetaData;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Types;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.function.Executable;

/** DatabaseMetaData, which database tools call first. */
class MetadataTest {
  private Connection connection;
  private DatabaseMetaData metadata;
  private String namespace;

  @BeforeEach
  void connect() throws SQLException {
    connection = Database.connect();
    metadata = connection.getMetaData();
    namespace = Database.newNamespace(connection);
    Database.execute(
        connection,
        "CREATE TABLE " + namespace + ".orders (region TEXT, id BIGINT, at TIMESTAMP NOT NULL, total DECIMAL(10, 2), "
            + "PRIMARY KEY (id, region))");
    Database.execute(connection, "CREATE USER TABLE " + namespace + ".notes (id BIGINT PRIMARY KEY, body TEXT)");
  }

  @AfterEach
  void close() throws SQLException {
    connection.close();
  }

  @Test
  void everyGetterWithoutArgumentsAnswers() {
    List<Executable> calls = new ArrayList<>();
    for (Method method : DatabaseMetaData.class.getMethods()) {
      if (method.getParameterCount() == 0) {
        calls.add(() -> {
          try {
            Object value = method.invoke(metadata);
            if (value instanceof ResultSet result) {
              Database.rows(result);
              result.close();
            }
          } catch (ReflectiveOperationException failure) {
            throw new AssertionError(method.getName() + ": " + failure.getCause(), failure.getCause());
          }
        });
      }
    }
    assertTrue(calls.size() > 100, "only " + calls.size());
    assertAll(calls);
  }

  @Test
  void theProductNamesItself() throws SQLException {
    assertEquals("KalamDB", metadata.getDatabaseProductName());
    assertFalse(metadata.getDatabaseProductVersion().isEmpty());
    assertEquals("\"", metadata.getIdentifierQuoteString());
    assertFalse(metadata.isReadOnly());
  }

  @Test
  void catalogsAndSchemas() throws SQLException {
    try (ResultSet catalogs = metadata.getCatalogs()) {
      assertEquals(List.of("kalam"), column(catalogs, "TABLE_CAT"));
    }
    try (ResultSet schemas = metadata.getSchemas()) {
      assertTrue(column(schemas, "TABLE_SCHEM").containsAll(List.of("public", "system", namespace)));
    }
    try (ResultSet schemas = metadata.getSchemas(null, namespace)) {
      assertEquals(List.of(namespace), column(schemas, "TABLE_SCHEM"));
    }
  }

  @Test
  void tables() throws SQLException {
    try (ResultSet tables = metadata.getTables(null, namespace, "%", null)) {
      assertEquals(List.of("notes", "orders"), column(tables, "TABLE_NAME"));
    }
    try (ResultSet tables = metadata.getTables("kalam", namespace, "ord%", null)) {
      assertTrue(tables.next());
      assertEquals(namespace, tables.getString("TABLE_SCHEM"));
      String type = tables.getString("TABLE_TYPE");
      assertFalse(tables.next());
      try (ResultSet typed = metadata.getTables(null, namespace, "orders", new String[] {type})) {
        assertEquals(List.of("orders"), column(typed, "TABLE_NAME"));
      }
    }
    try (ResultSet types = metadata.getTableTypes()) {
      assertFalse(column(types, "TABLE_TYPE").isEmpty());
    }
  }

  @Test
  void columns() throws SQLException {
    try (ResultSet columns = metadata.getColumns(null, namespace, "orders", "%")) {
      List<String> seen = new ArrayList<>();
      while (columns.next()) {
        seen.add(columns.getString("COLUMN_NAME") + " " + columns.getInt("DATA_TYPE") + " "
            + columns.getString("IS_NULLABLE") + " " + columns.getInt("ORDINAL_POSITION"));
      }
      assertEquals(
          List.of("region " + Types.VARCHAR + " NO 1", "id " + Types.BIGINT + " NO 2", "at " + Types.TIMESTAMP + " NO 3",
              "total " + Types.DECIMAL + " YES 4"),
          seen);
    }
    try (ResultSet columns = metadata.getColumns(null, namespace, "orders", "tot%")) {
      assertEquals(List.of("total"), column(columns, "COLUMN_NAME"));
    }
    try (ResultSet columns = metadata.getColumns(null, "system", "%", "%")) {
      assertTrue(column(columns, "TABLE_NAME").contains("live_queries"));
    }
  }

  @Test
  void primaryKeysInKeyOrder() throws SQLException {
    try (ResultSet keys = metadata.getPrimaryKeys(null, namespace, "orders")) {
      List<String> seen = new ArrayList<>();
      while (keys.next()) {
        seen.add(keys.getString("COLUMN_NAME") + " " + keys.getInt("KEY_SEQ"));
      }
      assertEquals(List.of("id 1", "region 2"), seen);
    }
  }

  @Test
  void foreignKeysIndexesAndTypesAnswer() throws SQLException {
    try (ResultSet keys = metadata.getImportedKeys(null, namespace, "orders")) {
      assertFalse(keys.next());
    }
    try (ResultSet keys = metadata.getExportedKeys(null, namespace, "orders")) {
      assertFalse(keys.next());
    }
    try (ResultSet keys = metadata.getCrossReference(null, namespace, "orders", null, namespace, "notes")) {
      assertFalse(keys.next());
    }
    try (ResultSet indexes = metadata.getIndexInfo(null, namespace, "orders", false, true)) {
      Database.rows(indexes);
    }
    try (ResultSet types = metadata.getTypeInfo()) {
      Database.rows(types);
    }
  }

  private static List<String> column(ResultSet result, String name) throws SQLException {
    List<String> values = new ArrayList<>();
    while (result.next()) {
      values.add(result.getString(name));
    }
    return Arrays.asList(values.toArray(new String[0]));
  }
}
