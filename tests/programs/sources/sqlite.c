/* Runs a few thousand statements and prints what they give. */
#include <stdio.h>
#include <string.h>
#include "sqlite3.h"

static sqlite3 *db;

static int row(void *unused, int columns, char **values, char **names) {
    for (int i = 0; i < columns; i++)
        printf("%s%s=%s", i ? " " : "", names[i], values[i] ? values[i] : "NULL");
    printf("\n");
    return 0;
}

static void run(const char *sql) {
    char *message = NULL;
    if (sqlite3_exec(db, sql, row, NULL, &message) != SQLITE_OK)
        printf("error: %s: %s\n", sql, message);
    sqlite3_free(message);
}

int main(int argc, char **argv) {
    printf("SQLite %s, %d arguments\n", sqlite3_libversion(), argc);
    if (sqlite3_open(":memory:", &db) != SQLITE_OK) return 1;
    run("create table t(id integer primary key, name text, score real)");
    run("begin");
    for (int i = 0; i < 3000; i++) {
        char sql[200];
        snprintf(sql, sizeof sql, "insert into t(name, score) values('name%d', %d.%d)", i * 7919 % 3001, i % 97, i % 10);
        run(sql);
    }
    run("commit");
    run("create index by_name on t(name)");
    run("select count(*), sum(score), min(name), max(name), avg(score) from t");
    run("select id, name, printf('%.3f', score) from t where name like '%99' order by score desc, id limit 10");
    run("update t set score = score * 1.5 where id % 3 = 0");
    run("delete from t where name glob '*7'");
    run("with recursive f(a, b) as (select 0, 1 union all select b, a + b from f where b < 1000000) select group_concat(a) from f");
    run("select length(name) l, count(*), total(score) from t group by l having count(*) > 5 order by l");
    run("select date('2024-02-29', '+1 year'), upper('abc'), json_extract('{\"a\":[1,2,3]}', '$.a[1]')");
    run("select * from missing");
    sqlite3_close(db);
    return 7;
}
