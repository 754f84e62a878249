//! A plot of lines, as SVG.

use std::fmt::Write;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 110.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
const COLOURS: &[&str] = &["#1b6ca8", "#c8553d", "#4f772d", "#7b2d8b", "#b8860b", "#333333"];

pub struct Line {
    pub name: String,
    /// In the order of x, which is above 0.
    pub points: Vec<(f64, f64)>,
}

/// Draws the lines over a logarithmic x axis and a linear y axis that starts at 0.
pub fn svg(title: &str, x_name: &str, y_name: &str, lines: &[Line]) -> String {
    let points = || lines.iter().flat_map(|line| line.points.iter().copied());
    let least = points().map(|(x, _)| x).fold(f64::INFINITY, f64::min).log2();
    let most = points().map(|(x, _)| x).fold(0.0, f64::max).log2();
    let highest = round_up(points().map(|(_, y)| y).fold(0.0, f64::max));
    let across = |x: f64| LEFT + (x.log2() - least) / (most - least).max(1.0) * (WIDTH - LEFT - RIGHT);
    let down = |y: f64| HEIGHT - BOTTOM - y / highest * (HEIGHT - TOP - BOTTOM);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    let mut text = |x: f64, y: f64, anchor: &str, words: &str| {
        let words = words.replace('&', "&amp;").replace('<', "&lt;");
        _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>");
    };
    text(WIDTH / 2.0, 20.0, "middle", title);
    text(WIDTH / 2.0, HEIGHT - 12.0, "middle", x_name);
    text(8.0, TOP - 12.0, "start", y_name);
    let marks: Vec<f64> = lines.first().map(|line| line.points.iter().map(|(x, _)| *x).collect()).unwrap_or_default();
    for &x in &marks {
        text(across(x), HEIGHT - BOTTOM + 18.0, "middle", &x.to_string());
    }
    for step in 0..=4 {
        let y = highest * f64::from(step) / 4.0;
        text(LEFT - 8.0, down(y) + 4.0, "end", &y.to_string());
    }
    // Names beside the ends of the lines, kept apart.
    let mut ends: Vec<(f64, &str)> =
        lines.iter().filter_map(|line| Some((down(line.points.last()?.1), line.name.as_str()))).collect();
    ends.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut free = TOP;
    for (y, name) in ends {
        let y = y.max(free);
        text(WIDTH - RIGHT + 8.0, y + 4.0, "start", name);
        free = y + 15.0;
    }
    for step in 0..=4 {
        let y = down(highest * f64::from(step) / 4.0);
        _ = writeln!(out, "<path d=\"M{LEFT} {y:.1}H{:.1}\" stroke=\"#ddd\"/>", WIDTH - RIGHT);
    }
    for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
        let path: Vec<String> = line.points.iter().map(|&(x, y)| format!("{:.1},{:.1}", across(x), down(y))).collect();
        _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            path.join(" ")
        );
    }
    out.push_str("</svg>\n");
    out
}

/// The next of 1, 2 and 4 times a power of ten.
fn round_up(value: f64) -> f64 {
    let mut power = 1.0;
    loop {
        if let Some(step) = [1.0, 2.0, 4.0].into_iter().find(|step| step * power >= value) {
            return step * power;
        }
        power *= 10.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_has_a_line_for_each_series_within_its_frame() {
        let line = |name: &str, scale: f64| Line {
            name: name.into(),
            points: vec![(1.0, scale), (64.0, 2.0 * scale), (4096.0, 3.0 * scale)],
        };
        let text = svg("a < b", "x", "y", &[line("one", 100.0), line("two", 120.0)]);
        assert_eq!(text.matches("<polyline").count(), 2);
        assert!(text.contains("a &lt; b") && text.contains(">4096<") && text.contains(">400<"), "{text}");
        assert!(text.contains(&format!("points=\"{LEFT:.1},")), "{text}");
    }

    #[test]
    fn scales_end_at_round_numbers() {
        assert_eq!([3.0, 41.0, 100.0, 1001.0].map(round_up), [4.0, 100.0, 100.0, 2000.0]);
    }
}
