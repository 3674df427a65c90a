//! The page's own files, built in: nothing comes from another place.

use super::routes::Reply;

const HTML: &str = include_str!("assets/page.html");
const SCRIPT: &str = include_str!("assets/page.js");
const STYLE: &str = include_str!("assets/page.css");

/// The file of that name.
pub fn asset(name: &str) -> Option<Reply> {
    let (content_type, text) = match name {
        "monitor.html" => ("text/html; charset=utf-8", HTML),
        "monitor.js" => ("text/javascript; charset=utf-8", SCRIPT),
        "monitor.css" => ("text/css; charset=utf-8", STYLE),
        _ => return None,
    };
    Some(Reply::new(200, content_type, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_asks_no_other_place_and_sets_only_text() {
        for text in [HTML, SCRIPT, STYLE] {
            let outside = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!outside.contains("http://") && !outside.contains("https://") && !outside.contains("url("));
        }
        for forbidden in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("] {
            assert!(!SCRIPT.contains(forbidden), "{forbidden}");
        }
        for forbidden in ["<script>", "style=", " onclick", "javascript:"] {
            assert!(!HTML.contains(forbidden), "{forbidden}");
        }
    }
}
