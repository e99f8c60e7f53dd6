//! The dialect of Jinja that chat templates are written in, on minijinja.
//!
//! Hugging Face renders templates with Python's Jinja2 under `trim_blocks` and `lstrip_blocks`, and adds
//! `raise_exception`, `strftime_now`, a `tojson` that writes like Python's `json.dumps`, and a `generation` block.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, Value};

/// An environment with all of it.
pub(super) fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    env.set_trim_blocks(true);
    env.set_lstrip_blocks(true);
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    env.add_filter("tojson", tojson);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
    set_time(&mut env, now);
    env
}

/// Sets what `strftime_now` answers.
pub(super) fn set_time(env: &mut Environment<'static>, seconds: i64) {
    env.add_function("strftime_now", move |format: String| strftime(&format, seconds));
}

/// `{% generation %}` marks the assistant's text for Hugging Face's own masks. Here the mask is found from the
/// rendered text, so the block only needs to be transparent; as an `if true` it keeps its whitespace control.
pub(super) fn prepare(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |e| e + 2);
        let (tag, after) = tag.split_at(end);
        let word = tag.trim_start_matches(['{', '%', '-', '+']).trim_end_matches(['}', '%', '-', '+']).trim();
        match word {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// What went wrong, without the name of our one template, which says nothing to the user.
pub(super) fn reason(error: &Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("{what} (line {line} of the template)"),
        None => what,
    }
}

fn tojson(value: Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Both mean what we do anyway: text as it is, keys in their order.
    let _: Option<bool> = options.get("ensure_ascii")?;
    let _: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let json = serde_json::to_value(&value)
        .map_err(|e| Error::new(ErrorKind::BadSerialization, "not a JSON value").with_source(e))?;
    let mut out = String::new();
    python_json(&json, indent, 0, &mut out);
    Ok(out)
}

/// `json.dumps(value, ensure_ascii=False, indent=indent)`: `, ` and `: ` between, a line each when indented.
fn python_json(value: &serde_json::Value, indent: Option<usize>, depth: usize, out: &mut String) {
    use serde_json::Value as J;
    let line = |depth: usize, out: &mut String| {
        if let Some(width) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', width * depth));
        }
    };
    let comma = if indent.is_some() { "," } else { ", " };
    match value {
        J::Array(items) if !items.is_empty() => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i > 0 { comma } else { "" });
                line(depth + 1, out);
                python_json(item, indent, depth + 1, out);
            }
            line(depth, out);
            out.push(']');
        }
        J::Object(fields) if !fields.is_empty() => {
            out.push('{');
            for (i, (key, item)) in fields.iter().enumerate() {
                out.push_str(if i > 0 { comma } else { "" });
                line(depth + 1, out);
                out.push_str(&J::from(key.as_str()).to_string());
                out.push_str(": ");
                python_json(item, indent, depth + 1, out);
            }
            line(depth, out);
            out.push('}');
        }
        scalar_or_empty => out.push_str(&scalar_or_empty.to_string()),
    }
}

/// The directives that templates use, in the C locale and UTC; an unknown one is left standing.
pub fn strftime(format: &str, seconds: i64) -> String {
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let (days, clock) = (seconds.div_euclid(86400), seconds.rem_euclid(86400));
    let (year, month, day, of_year) = civil(days);
    let (hour, minute, second) = (clock / 3600, clock / 60 % 60, clock % 60);
    let weekday = DAYS[days.rem_euclid(7) as usize];
    let month_name = MONTHS[month as usize - 1];
    let mut out = String::new();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let bare = chars.next_if_eq(&'-').is_some();
        let two = |n: i64| if bare { n.to_string() } else { format!("{n:02}") };
        out.push_str(&match chars.next() {
            Some('Y') => year.to_string(),
            Some('y') => two(year.rem_euclid(100)),
            Some('m') => two(month),
            Some('d') => two(day),
            Some('H') => two(hour),
            Some('I') => two((hour + 11) % 12 + 1),
            Some('M') => two(minute),
            Some('S') => two(second),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.into(),
            Some('j') => {
                if bare {
                    of_year.to_string()
                } else {
                    format!("{of_year:03}")
                }
            }
            Some('A') => weekday.into(),
            Some('a') => weekday[..3].into(),
            Some('B') => month_name.into(),
            Some('b' | 'h') => month_name[..3].into(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('%') => "%".into(),
            Some(other) => format!("%{other}"),
            None => "%".into(),
        });
    }
    out
}

/// Days since 1970-01-01 to (year, month, day, day of the year), Gregorian, by counting years and months down.
fn civil(days: i64) -> (i64, i64, i64, i64) {
    let leap = |y: i64| y % 4 == 0 && (y % 100 != 0 || y % 400 == 0);
    let (mut year, mut left) = (1970, days);
    while left < 0 {
        year -= 1;
        left += if leap(year) { 366 } else { 365 };
    }
    loop {
        let len = if leap(year) { 366 } else { 365 };
        if left < len {
            break;
        }
        left -= len;
        year += 1;
    }
    let of_year = left + 1;
    let february = if leap(year) { 29 } else { 28 };
    let mut month = 1;
    for len in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if left < len {
            break;
        }
        left -= len;
        month += 1;
    }
    (year, month, left + 1, of_year)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String, String> {
        let mut env = environment();
        set_time(&mut env, 1_721_952_000);
        env.add_template_owned("chat", prepare(source)).map_err(|e| reason(&e))?;
        let tool = serde_json::json!({"z": 1, "a": ["<é>", 1.5, {}], "n": null});
        env.get_template("chat")
            .unwrap()
            .render(minijinja::context! { tool => minijinja::Value::from_serialize(&tool) })
            .map_err(|e| reason(&e))
    }

    #[test]
    fn tojson_writes_like_python() {
        assert_eq!(render("{{ tool | tojson }}").unwrap(), r#"{"z": 1, "a": ["<é>", 1.5, {}], "n": null}"#);
        assert_eq!(
            render("{{ {'a': [1, 2]} | tojson(indent=2) }}").unwrap(),
            "{\n  \"a\": [\n    1,\n    2\n  ]\n}"
        );
    }

    #[test]
    fn dates_follow_the_given_time() {
        assert_eq!(
            render("{{ strftime_now('%d %b %Y, %A %H:%M %j %-m') }}").unwrap(),
            "26 Jul 2024, Friday 00:00 208 7"
        );
        assert_eq!(strftime("%F %T", 951_868_799), "2000-02-29 23:59:59");
        assert_eq!(strftime("%F %a", -1), "1969-12-31 Wed");
    }

    #[test]
    fn a_raised_exception_is_the_reason() {
        assert_eq!(
            render("a\n{{ raise_exception('no system') }}").unwrap_err(),
            "no system (line 2 of the template)"
        );
    }

    #[test]
    fn pythonisms_work() {
        assert_eq!(
            render("{{ 'a,b'.split(',')[-1] }}{{ tool.get('q', 'd') }}{{ 'x'.upper() }}").unwrap(),
            "bdX"
        );
        assert_eq!(
            render("{% for i in [1,2,3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}").unwrap(),
            "1"
        );
        assert_eq!(render("x {%- generation -%} y {%- endgeneration %} z").unwrap(), "xy z");
    }

    #[test]
    fn blocks_take_their_line_with_them() {
        assert_eq!(render("a\n   {% if true %}\nb\n   {% endif %}\nc\n").unwrap(), "a\nb\nc");
    }
}
