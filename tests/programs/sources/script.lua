-- Closures, coroutines, strings, tables, the collector and errors.
local function fib(n) return n < 2 and n or fib(n - 1) + fib(n - 2) end
print("fib", fib(24))
local function queens(n)
  local count, columns, up, down = 0, {}, {}, {}
  local function place(row)
    if row > n then count = count + 1 return end
    for column = 1, n do
      if not (columns[column] or up[row + column] or down[row - column]) then
        columns[column], up[row + column], down[row - column] = true, true, true
        place(row + 1)
        columns[column], up[row + column], down[row - column] = nil, nil, nil
      end
    end
  end
  place(1)
  return count
end
print("queens", queens(7))
local words = {}
for word in ("the quick brown fox jumps over the lazy dog"):gmatch("%a+") do words[#words + 1] = word:upper() end
table.sort(words)
print(table.concat(words, ","))
local producer = coroutine.wrap(function() for i = 1, 5 do coroutine.yield(i * i) end end)
print(producer(), producer(), producer())
print(pcall(error, { code = 3 }), select(2, pcall(error, "text", 0)))
print(pcall(function() local t = nil; return t.x end))
print(string.format("%5.2f|%-8s|%x", math.pi, "left", 255), #string.rep("ab", 1000))
local sum = 0
for i = 1, 20000 do sum = sum + #tostring(setmetatable({}, { __tostring = function() return "x" .. i end })) end
print("sum", sum, collectgarbage("count") > 0)
print(os.getenv("NO_SUCH_VARIABLE"), 7 // 2, 7 % -3, 2 ^ 10, 1 << 40)
