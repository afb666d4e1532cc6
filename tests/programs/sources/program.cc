// Containers, streams, exceptions, static objects, threads.
#include <algorithm>
#include <chrono>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <optional>
#include <regex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <unordered_map>
#include <variant>
#include <vector>

struct Announced {
    std::string name;
    explicit Announced(std::string n) : name(std::move(n)) { std::cout << "begin " << name << "\n"; }
    ~Announced() { std::cout << "end " << name << std::endl; }
};
static Announced first("first"), second("second");
inline int counter = 0;
thread_local Announced *current = nullptr;
thread_local int depth = 5;

struct Shape {
    virtual ~Shape() = default;
    virtual double area() const = 0;
};
struct Circle : Shape {
    double r;
    explicit Circle(double r) : r(r) {}
    double area() const override { return 3 * r * r; }
};
struct Square : virtual Shape {
    double a;
    explicit Square(double a) : a(a) {}
    double area() const override { return a * a; }
};
struct Failure : std::runtime_error {
    int code;
    Failure(const std::string &what, int code) : std::runtime_error(what), code(code) {}
};

static int deep(int n) {
    Announced *unused = nullptr;
    (void)unused;
    auto guard = std::make_unique<std::string>("guard");
    if (n == 0) throw Failure("at the bottom", 42);
    return deep(n - 1) + 1;
}

int main(int argc, char **argv) {
    std::map<std::string, std::vector<int>> groups;
    for (int i = 0; i < 20; i++) groups[i % 3 ? "other" : "third"].push_back(i * i);
    for (auto &[name, values] : groups)
        std::cout << name << ": " << std::accumulate(values.begin(), values.end(), 0) << "\n";
    std::unordered_map<int, std::string> names{{1, "one"}, {2, "two"}};
    std::cout << names.at(2) << " " << names.size() << "\n";
    try {
        names.at(3);
    } catch (const std::out_of_range &error) {
        std::cout << "out of range\n";
    }
    try {
        deep(50);
    } catch (const std::exception &error) {
        auto *failure = dynamic_cast<const Failure *>(&error);
        std::cout << error.what() << " " << (failure ? failure->code : -1) << "\n";
    }
    try {
        try {
            throw 7;
        } catch (int value) {
            std::cout << "int " << value << "\n";
            throw;
        }
    } catch (...) {
        std::cout << "again\n";
    }
    std::vector<std::unique_ptr<Shape>> shapes;
    shapes.push_back(std::make_unique<Circle>(2));
    shapes.push_back(std::make_unique<Square>(3));
    for (auto &shape : shapes) std::cout << shape->area() << " " << (dynamic_cast<Circle *>(shape.get()) != nullptr) << "\n";
    std::variant<int, std::string> either = std::string("text");
    std::cout << std::visit([](auto &v) { std::ostringstream s; s << v; return s.str(); }, either) << "\n";
    std::regex pattern("([a-z]+)@([a-z]+)\\.com");
    std::smatch match;
    std::string mail = "write to someone@example.com now";
    if (std::regex_search(mail, match, pattern)) std::cout << match[1] << " at " << match[2] << "\n";
    std::mutex mutex;
    std::vector<std::thread> threads;
    int total = 0;
    for (int i = 0; i < 4; i++)
        threads.emplace_back([&, i] {
            depth += i;
            try {
                deep(i);
            } catch (Failure &) {
                depth *= 2;
            }
            std::lock_guard<std::mutex> lock(mutex);
            total += depth;
        });
    for (auto &thread : threads) thread.join();
    std::cout << "threads " << total << " " << depth << " " << ++counter << "\n";
    std::function<int(int)> factorial = [&](int n) { return n < 2 ? 1 : n * factorial(n - 1); };
    std::cout << factorial(10) << " " << argc << " " << (argc > 1 ? argv[1] : "") << "\n";
    std::optional<int> none;
    std::cout << none.value_or(9) << std::endl;
    std::cerr << "done\n";
    return 5;
}
